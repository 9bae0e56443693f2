"""Checkpoints as training programs save them: found, read without running code, and loaded."""

import argparse
import functools
import os
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from effdet import DetBenchTrain, unwrap_bench
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm.utils import ModelEmaV2, ModelEmaV3
from timm.utils.checkpoint_saver import CheckpointSaver
from torch import Tensor, nn

from model import EfficientDet, build_detector, load_weights
from tests.model.conftest import Pair


@pytest.fixture(scope="module")
def averaged() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_detector("tiny", 6).state_dict()


@pytest.fixture(scope="module")
def raw(averaged: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in averaged.items()}


@functools.cache
def six_classes() -> EfficientDet:
    return build_detector("tiny", 6)


def assert_loads(file: Path, expected: dict[str, Tensor], **options: Any) -> None:
    detector = six_classes()
    for value in detector.state_dict().values():
        value.fill_(7)
    load_weights(detector, file, **options)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, expected[key].to(value.dtype)), key


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def test_what_effdets_train_saves_with_timms_saver(
    tmp_path: Path, make_pair: Callable[..., Pair]
) -> None:
    """effdet's train.py: its training bench, timm's averaged model, and the command's arguments."""
    reference, ours = make_pair("efficientdet_d0", (128, 128))
    bench = DetBenchTrain(reference, create_labeler=True)
    average = ModelEmaV2(bench)
    with torch.no_grad():
        for parameter in bench.parameters():
            parameter.zero_()
    saver = CheckpointSaver(
        bench,
        torch.optim.SGD(bench.parameters(), lr=0.1, momentum=0.9),
        args=argparse.Namespace(model="efficientdet_d0", lr=0.1, output=Path("runs")),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
        unwrap_fn=unwrap_bench,
    )
    saver.save_checkpoint(3, metric=0.3)
    fresh = build_detector("efficientdet_d0", image_size=(128, 128))
    load_weights(fresh, tmp_path / "model_best.pth.tar")
    expected = ours.state_dict()
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, expected[key]), key
    load_weights(fresh, tmp_path / "model_best.pth.tar", prefer_ema=False)
    assert all(not parameter.any() for parameter in fresh.parameters())


def lightning(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": tensors,
        "callbacks": {"ModelCheckpoint": {"dirpath": Path("runs"), "best": torch.ones(())}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "hyper_parameters": OmegaConf.create({"lr": 0.1, "sizes": [1, 2]}),
    }


def test_lightning_with_an_average_next_to_the_weights(
    tmp_path: Path, raw: dict, averaged: dict
) -> None:
    tensors = {
        **prefixed("model.", raw),
        **prefixed("model_ema.module.", averaged),
        "metric.confusion": torch.ones(6, 6),
    }
    torch.save(lightning(tensors), tmp_path / "last.ckpt")
    assert_loads(tmp_path / "last.ckpt", averaged)
    assert_loads(tmp_path / "last.ckpt", raw, prefer_ema=False)


@pytest.mark.parametrize(
    "prefix", ["module._orig_mod.", "_orig_mod.module.", "net.", "ema.module.", "a.b.c."]
)
def test_prefixes(tmp_path: Path, averaged: dict, prefix: str) -> None:
    torch.save({**prefixed(prefix, averaged), "extra.weight": torch.ones(1)}, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", averaged)


def test_parts_that_were_compiled_alone(tmp_path: Path, averaged: dict) -> None:
    tensors = {
        key.replace("backbone.", "backbone._orig_mod."): value for key, value in averaged.items()
    }
    torch.save(tensors, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", averaged)


def test_averages_of_timm_torch_and_others(tmp_path: Path, raw: dict, averaged: dict) -> None:
    detector = build_detector("tiny", 6)
    detector.load_state_dict(averaged)
    for wrapper in (ModelEmaV3(detector), torch.optim.swa_utils.AveragedModel(detector)):
        torch.save(wrapper.state_dict(), tmp_path / "average.pth")
        assert_loads(tmp_path / "average.pth", averaged)
    for content in (
        {"models_state_dict": [raw], "callbacks": {"position": {"ema": averaged}}},
        {"model": raw, "ema": {"decay": 0.9, "module": prefixed("module.", averaged)}},
        {"model": raw, "optimizer": {}, "swa_model": averaged},
    ):
        torch.save(content, tmp_path / "both.pth")
        assert_loads(tmp_path / "both.pth", averaged)
        assert_loads(tmp_path / "both.pth", raw, prefer_ema=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, averaged: dict, dtype: torch.dtype) -> None:
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in averaged.items()
    }
    torch.save({"state_dict": tensors}, tmp_path / "half.pth")
    assert_loads(tmp_path / "half.pth", tensors)


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "weights", "x.safetensors"])
def test_safetensors_under_any_name(tmp_path: Path, averaged: dict, name: str) -> None:
    save_file(averaged, tmp_path / name)
    assert_loads(tmp_path / name, averaged)


def test_torch_files_under_any_name(tmp_path: Path, averaged: dict) -> None:
    torch.save(averaged, tmp_path / "x.safetensors")
    assert_loads(tmp_path / "x.safetensors", averaged)
    torch.save(
        {"args": argparse.Namespace(a=1), "model": averaged},
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    assert_loads(tmp_path / "old.pt", averaged)


class Record(dict):
    """A dictionary of a class that nobody else has, as configurations are."""


class Entry:
    """An object with slots."""

    __slots__ = ("value",)


def test_objects_of_unknown_classes_are_left_out(tmp_path: Path, averaged: dict) -> None:
    entry = Entry()
    entry.value = 3  # type: ignore[attr-defined]
    log = defaultdict(list, loss=[1.0])
    for extra in (entry, Record(lr=0.1), log, {Entry: {Path("a")}}, OrderedDict(a=entry)):
        torch.save({"extra": extra, "state_dict": averaged}, tmp_path / "x.pth")
        assert_loads(tmp_path / "x.pth", averaged)


class Malicious:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("new", [True, False])
def test_no_code_of_a_file_is_run(tmp_path: Path, averaged: dict, new: bool) -> None:
    mark = tmp_path / "mark"
    calls = {
        "blocked": Malicious(os.mkdir, str(mark)),
        "attribute": Malicious(Path.mkdir, mark),
        "source": Malicious(exec, f"import os; os.mkdir({str(mark)!r})"),
        "nested": Malicious(pickle.loads, pickle.dumps(Malicious(os.mkdir, str(mark)))),
    }
    for name, call in calls.items():
        file = tmp_path / f"{name}.pth"
        content = {"state_dict": averaged, "args": call}
        torch.save(content, file, _use_new_zipfile_serialization=new)
        if name in ("source", "nested"):
            assert_loads(file, averaged)
        else:
            with pytest.raises(
                RuntimeError, match=r"run(ning)? code \((posix.mkdir|of builtins.g|of pathlib)"
            ):
                load_weights(six_classes(), file)
    assert not mark.exists()
    assert "tests.model" not in str(torch.serialization.get_safe_globals())


class Net(nn.Module):
    """A detector's module in a training program."""

    def __init__(self, detector: EfficientDet) -> None:
        super().__init__()
        self.detector = detector


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_whole_modules_are_named(tmp_path: Path, new: bool, wrapped: bool) -> None:
    net = Net(build_detector("tiny", 6))
    torch.save(
        {"epoch": 1, "model": net} if wrapped else net,
        tmp_path / "whole.pth",
        _use_new_zipfile_serialization=new,
    )
    with pytest.raises(RuntimeError, match=r"is a whole pickled module \(.*Net\).*state_dict\(\)"):
        load_weights(six_classes(), tmp_path / "whole.pth")
