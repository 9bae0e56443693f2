"""The experiment's configuration, its periods, and when the trainer stops."""

import copy
from pathlib import Path

import pytest
import yaml
from determined.cli import ntsc
from hypothesis import given
from hypothesis import strategies as st

from cluster.overlays import overlay_arguments
from experiments.settings.experiment import Period, load_config, parse_config
from experiments.settings.hparams import HParamError
from experiments.settings.yaml_files import ConfigError, merge, parse_settings, read_yaml
from experiments.training.intervals import StepInterval
from experiments.training.trial import step_seed

DATA = {"data": {"path": "/data/coco"}}


def test_settings_are_hyperparameters_read_as_yaml() -> None:
    settings = parse_settings(["lr=1e-2", "amp=true", "lr_noise=[0.1, 0.2]", "weights=null"])
    hparams = parse_config({**DATA, "hyperparameters": {"lr": 0.1, **settings}}).hparams
    assert (hparams.lr, hparams.amp, hparams.lr_noise, hparams.weights) == (
        0.01,
        True,
        [0.1, 0.2],
        None,
    )
    with pytest.raises(ConfigError, match="name=value"):
        parse_settings(["lr"])


def test_one_pass_applies_overlays_settings_and_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    files = [tmp_path / name for name in ("base.yaml", "one.yaml", "two.yaml")]
    contents = [
        {"data": {"path": "a", "val": "v"}, "hyperparameters": {"lr": 0.1, "weights": "w.pth"}},
        {"hyperparameters": {"lr": 0.2, "epochs": 20}},
        {"hyperparameters": {"epochs": 30}, "scheduling_unit": 7},
    ]
    for file, content in zip(files, contents, strict=True):
        file.write_text(yaml.safe_dump(content))
    config = load_config(files[0], overlays=files[1:], settings=["lr=0.3"], data=Path("b"))
    assert (config.hparams.lr, config.hparams.epochs, config.reporting_batches) == (0.3, 30, 7)
    assert (config.data, config.val_split) == (tmp_path / "b", "v")
    assert config.hparams.weights == str(tmp_path / "w.pth")
    assert parse_config(config.raw) == config
    assert load_config(files[0]).data == tmp_path / "a"


def test_a_searchers_values_win_and_written_out_constants_are_read() -> None:
    raw = {**DATA, "hyperparameters": {"lr": {"type": "const", "val": 0.5}, "epochs": 20}}
    assert parse_config(raw).hparams.lr == 0.5
    assert parse_config(raw, {"lr": 0.25}).hparams.lr == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "--data FOLDER"),
        ({"data": {"path": "/x", "valid": "v"}}, r"data: has no setting \['valid'\]"),
        ({"min_validation_period": {"hours": 1}}, "min_validation_period"),
        ({"min_checkpoint_period": 5}, "min_checkpoint_period"),
        ({"optimizations": {"aggregation_frequency": 2}}, "global_batch_size"),
        ({"records_per_epoch": 118287}, "records_per_epoch"),
    ],
)
def test_wrong_sections_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**DATA, **change})


def test_compression_of_gradients_has_one_place() -> None:
    with pytest.raises(HParamError, match="fp16_compression"):
        parse_config({**DATA, "optimizations": {"gradient_compression": True}})


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(tmp_path / "broken.yaml")


def test_periods_in_every_unit() -> None:
    assert Period().batches(100, 16) == 0
    assert Period(7, "batches").batches(100, 16) == 7
    assert Period(2, "epochs").batches(100, 16) == 200
    assert Period(1600, "records").batches(100, 16) == 100
    assert Period(1, "records").batches(100, 16) == 1


@given(period=st.integers(0, 50), start=st.integers(0, 200), total=st.integers(1, 300))
def test_a_resumed_run_stops_where_the_straight_one_did(
    period: int, start: int, total: int
) -> None:
    """The trainer counts from 0 after a resume; the stops must not move."""
    straight = StepInterval(period, offset=0, last=total)
    resumed = StepInterval(period, offset=start, last=total)
    for batch in range(1, total - start + 1):
        assert (batch in resumed) == (batch + start in straight)


@given(
    st.tuples(st.integers(0, 2**31), st.integers(0, 10**7), st.integers(0, 255)),
    st.tuples(st.integers(0, 2**31), st.integers(0, 10**7), st.integers(0, 255)),
)
def test_step_seeds_differ(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert 0 <= step_seed(*one) < 2**64
    assert (step_seed(*one) == step_seed(*other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "overlays"),
    [("const", ["mini"]), ("distributed", ["mini"]), ("adaptive", ["mini", "mini-search"])],
)
def test_overlays_change_a_configuration_as_determineds_command_line_does(
    name: str, overlays: list[str]
) -> None:
    files = [Path(f"experiments/overlays/{overlay}.yaml") for overlay in overlays]
    ours = read_yaml(Path(f"experiments/{name}.yaml"))
    theirs = ntsc.parse_config_overrides(copy.deepcopy(ours), overlay_arguments(files)[1::2])
    for file in files:
        ours = merge(ours, read_yaml(file))
    if name != "adaptive":  # its values are the searcher's
        parse_config(ours)
    assert ours == theirs


_BASE = {
    "min_validation_period": {"epochs": 1},
    "hyperparameters": {"lr": {"type": "double", "minval": 1, "maxval": 2}, "opt": "sgd"},
    "searcher": {"name": "adaptive_asha", "metric": "AP", "max_trials": 5},
    "checkpoint_storage": {"type": "shared_fs", "host_path": "/x"},
}


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"min_validation_period": {"batches": 3}}, {"batches": 3}),
        (
            {"hyperparameters": {"lr": {"type": "log", "base": 10}}},
            {"lr": {"type": "log", "base": 10}, "opt": "sgd"},
        ),
        (
            {"hyperparameters": {"lr": {"minval": 1.5}}},
            {"lr": {"type": "double", "minval": 1.5, "maxval": 2}, "opt": "sgd"},
        ),
        ({"hyperparameters": {"lr": 0.1}}, {"lr": 0.1, "opt": "sgd"}),
        (
            {"hyperparameters": {"opt": {"type": "categorical", "vals": ["sgd"]}}},
            {
                "lr": {"type": "double", "minval": 1, "maxval": 2},
                "opt": {"type": "categorical", "vals": ["sgd"]},
            },
        ),
        (
            {"hyperparameters": {"epochs": 2}},  # the name of a unit, but no period
            {"lr": {"type": "double", "minval": 1, "maxval": 2}, "opt": "sgd", "epochs": 2},
        ),
        ({"searcher": {"name": "single", "metric": "AP"}}, {"name": "single", "metric": "AP"}),
        (
            {"searcher": {"max_trials": 2}},
            {"name": "adaptive_asha", "metric": "AP", "max_trials": 2},
        ),
        ({"checkpoint_storage": {"type": "s3", "bucket": "b"}}, {"type": "s3", "bucket": "b"}),
    ],
    ids=str,
)
def test_what_names_its_kind_replaces_and_the_rest_merges(
    change: dict, result: dict, tmp_path: Path
) -> None:
    """Off a cluster and through Determined's command line alike."""
    (section,) = change
    here = merge(_BASE, change)
    assert here == {**_BASE, section: result}
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump(change))
    arguments = overlay_arguments([file])[1::2]
    assert ntsc.parse_config_overrides(copy.deepcopy(_BASE), arguments) == here
