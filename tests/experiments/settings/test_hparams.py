"""Every hyperparameter is honoured or refused, with all that is wrong in one message."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.settings.hparams import (
    HParamError,
    HParams,
    as_dict,
    changed_from_default,
    parse_hparams,
)
from experiments.training.detector import detector_overrides, random_backbone_notice

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def test_defaults_are_valid() -> None:
    assert parse_hparams({}) == HParams()
    assert parse_hparams(as_dict(HParams())) == HParams()
    assert changed_from_default(HParams()) == {}


def test_one_that_a_file_leaves_out_has_const_yamls_value() -> None:
    named = yaml.safe_load((EXPERIMENTS / "const.yaml").read_text())["hyperparameters"]
    defaults = as_dict(HParams())
    assert {name: defaults[name] for name in named} == named
    assert as_dict(parse_hparams(named)) == defaults
    distributed = yaml.safe_load((EXPERIMENTS / "distributed.yaml").read_text())["hyperparameters"]
    differing = {name for name in named | distributed if named.get(name) != distributed.get(name)}
    assert differing == {"global_batch_size", "lr", "sync_bn"}


@pytest.mark.parametrize(
    ("given", "name", "left"),
    [
        ({"amp": False}, "min_loss_scale", None),
        ({"amp_dtype": "bfloat16"}, "min_loss_scale", None),
        ({"weights": "d0.pth"}, "pretrained_backbone", False),
        ({"backbone_weights": "b0.pth"}, "pretrained_backbone", False),
    ],
)
def test_a_default_never_contradicts_a_value_that_is_given(
    given: dict[str, object], name: str, left: object
) -> None:
    assert getattr(parse_hparams(given), name) == left
    with pytest.raises(HParamError, match=name):
        # What is written out must fit.
        parse_hparams({"amp": False, "backbone_weights": "b0.pth", name: getattr(HParams(), name)})


def test_every_problem_is_in_one_message() -> None:
    with pytest.raises(HParamError) as error:
        parse_hparams({"learning_rte": 1, "lr": "fast", "epochs": 0, "momentum": 1.5, "amp": 1})
    message = str(error.value)
    for part in (
        "learning_rte",
        "lr: is 'fast', must be a number",
        "epochs: is 0",
        "momentum",
        "amp: is 1, must be true or false",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("sync_bm", True, "did you mean sync_bn?"),
        ("batch_size", 16, "write global_batch_size"),
        ("jit_loss", True, "write compile"),
        ("lr", {"type": "double", "minval": 0.1, "maxval": 1}, "--set lr="),
        ("opt_eps", -1.0, "must be a number of at least 0 or null"),
        ("clip_grad", 0, "null: gradients stay as they are"),
        ("fill_color", 256, "0 to 255"),
        ("fill_color", [0, 0, -1], "0 to 255"),
        ("fill_color", [1, 2], "[r, g, b]"),
        ("fill_color", "grey", "must be mean"),
        ("remode", "noise", "must be pixel, rand or const"),
        ("image_size", [512], "[height, width]"),
        ("lr_noise", [0.9, 0.4], "rising"),
        ("lr_noise", 1.5, "must be a number from 0 to 1"),
        ("lr_noise", -0.5, "must be a number from 0 to 1"),
        ("lr_noise_pct", 0, "must be a number above 0"),  # timm would draw for ever
        ("cooldown_epochs", 0.5, "a whole number"),
        ("epochs", 2.5, "a whole number"),
        ("lr", float("nan"), "a number"),
        ("lr", float("inf"), "a number"),
        ("sched", "cosin", "must be cosine, tanh, step, plateau, poly or constant"),
        ("lr", True, "a number"),
        ("epochs", True, "a whole number"),
        ("epochs", "3", "a whole number"),
        ("momentum", 1, "of at least 0 and below 1"),
        ("gamma", 0.5, "of at least 1"),
        ("min_loss_scale", 0, "null: no floor"),
        ("recount", 0, "to erase none, set `reprob: 0`"),
        ("input_threads", 0, "null: its share of the cores"),
        ("eval_batch_size", 0, "null: as in training"),
        ("image_size", [512, 0], "[height, width]"),
        ("mean", [0.5, 0.5], "one or three numbers from 0 to 1"),
        ("std", 0.5, "one or three numbers above 0"),
        (7, 1, "no such hyperparameter"),
    ],
)
def test_refusals_say_what_to_do(name: Any, value: object, hint: str) -> None:
    with pytest.raises(HParamError) as error:
        parse_hparams({name: value})
    assert hint in str(error.value)
    assert str(error.value).count(f"\n  {name}: ") == str(error.value).count("\n  ") == 1


@pytest.mark.parametrize(
    "values",
    [
        {"scale_min": 2.0, "scale_max": 1.0},
        {"pretrained_backbone": True, "backbone_weights": "b0.pth"},
        {"smoothing": 0.1, "legacy_focal": True},
        {"min_loss_scale": 16.0, "amp": False},
        {"epochs": 5, "warmup_epochs": 5},
        {"sched": "plateau", "decay_rate": 1.0},
        {"hardware_decoder": True, "deterministic": True},
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(HParamError, match=list(values)[-1]):
        parse_hparams(values)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("warmup_lr", "1e-4", 1e-4),  # YAML 1.1 reads it as text
        ("lr", 1, 1.0),
        ("epochs", 3.0, 3),  # a searcher's whole number
        ("lr_noise", "0.4 0.9", [0.4, 0.9]),  # the original's spelling
        ("lr_noise", 0.5, 0.5),
        ("lr_noise", "0.5", 0.5),
        ("lr_noise", 0, 0.0),
        ("lr_noise", [0.5], [0.5]),
        ("cooldown_epochs", 10.0, 10),
        ("image_size", 512, 512),
        ("image_size", [512, 640], [512, 640]),
        ("weights", None, None),
        ("fill_color", "mean", "mean"),
        ("fill_color", 0, 0),
        ("fill_color", [0, 128, 255], [0, 128, 255]),
        ("opt_eps", 0, 0.0),
        ("decay_rate", 0, 0.0),
        ("box_loss_weight", 0, 0.0),
        ("alpha", 0, 0.0),
    ],
)
def test_spellings_are_understood(name: str, given: object, read: object) -> None:
    value = getattr(parse_hparams({"warmup_epochs": 0, name: given}), name)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize("group", HParams.__bases__)
def test_every_hyperparameter_is_used_where_its_group_says(group: type[HParams]) -> None:
    """One that no code reads would be accepted and ignored."""
    files = re.findall(r"`(experiments/\S+\.py)`", group.__doc__ or "")
    code = {name: (EXPERIMENTS.parent / name).read_text() for name in files}
    used_in = {
        name: {file for file, text in code.items() if re.search(rf"hparams\.{name}\b", text)}
        for name in group.model_fields
    }
    assert all(used_in.values()), used_in
    assert set().union(*used_in.values()) == set(files)


def test_every_hyperparameter_has_a_meaning_of_one_line() -> None:
    for name, field in HParams.model_fields.items():
        assert re.fullmatch(r"[^\n|]+\.", field.description or ""), name


def test_hyperparameters_can_be_sent_to_other_processes_but_not_changed() -> None:
    hparams = parse_hparams({"lr": 0.1})
    assert pickle.loads(pickle.dumps(hparams)) == hparams
    with pytest.raises(ValueError, match="frozen"):
        hparams.lr = 0.2


@pytest.mark.parametrize("name", ["const", "distributed", "adaptive"])
def test_the_experiments_are_valid(name: str) -> None:
    config = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    values = {}
    for hparam, value in config["hyperparameters"].items():
        if isinstance(value, dict):
            choices = (
                value["vals"]
                if value["type"] == "categorical"
                else [value["minval"], value["maxval"]]
            )
            for choice in choices:
                parse_hparams({**_fixed(config), hparam: choice})
            values[hparam] = choices[0]
        else:
            values[hparam] = value
    hparams = parse_hparams(values)
    if name == "adaptive":
        assert config["searcher"]["max_time"] == hparams.total_epochs
        assert config["searcher"]["time_metric"] == "epochs"


def _fixed(config: dict) -> dict:
    return {
        name: value
        for name, value in config["hyperparameters"].items()
        if not isinstance(value, dict)
    }


def test_the_experiments_have_the_originals_values() -> None:
    def read(name: str) -> dict:
        return yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())

    const, distributed, adaptive = read("const"), read("distributed"), read("adaptive")
    assert (const["hyperparameters"]["global_batch_size"], const["hyperparameters"]["lr"]) == (
        16,
        0.03,
    )
    assert distributed["hyperparameters"]["global_batch_size"] == 64
    assert distributed["hyperparameters"]["lr"] == 0.06
    assert distributed["hyperparameters"]["sync_bn"] is True
    assert distributed["resources"]["slots_per_trial"] == 4
    assert distributed["optimizations"] == {
        "tensor_fusion_threshold": 1,
        "tensor_fusion_cycle_time": 2,
    }
    assert adaptive["hyperparameters"]["global_batch_size"] == 44
    assert adaptive["searcher"]["max_trials"] == 1000
    assert adaptive["searcher"]["max_concurrent_trials"] == 4
    assert adaptive["searcher"]["mode"] == "aggressive"
    for config in (const, distributed, adaptive):
        assert config["bind_mounts"][0]["read_only"] is True
        assert config["bind_mounts"][0]["container_path"] == config["data"]["path"]


@pytest.mark.parametrize(
    ("value", "color"),
    [(0, (0, 0, 0)), ("0", (0, 0, 0)), ([7], (7, 7, 7)), ([0, 9, 255], (0, 9, 255))],
)
def test_padding_takes_the_color_that_is_given(value: object, color: tuple[int, ...]) -> None:
    hparams = parse_hparams({"model": "tiny", "fill_color": value})
    assert detector_overrides(hparams)["fill_color"] == color


def test_a_backbone_that_starts_from_nothing_is_announced() -> None:
    notice = random_backbone_notice(parse_hparams({"pretrained_backbone": False}))
    assert notice is not None
    assert "\n" not in notice
    assert "random weights" in notice
    for given in ({}, {"weights": "d0.pth"}, {"backbone_weights": "b0.pth"}):
        assert random_backbone_notice(parse_hparams(given)) is None
