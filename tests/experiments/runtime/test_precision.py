"""amp_dtype: auto is one precision on all ranks, and a resumed run keeps it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.runtime.communication import SingleProcess
from experiments.runtime.devices import has_bfloat16
from experiments.runtime.precision import resolve_precision
from experiments.settings.hparams import parse_hparams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Ranks(SingleProcess):
    """This process and others, some of whose GPUs lack bfloat16."""

    size = 4

    def __init__(self, others_lacking: int) -> None:
        self._others = others_lacking

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor + self._others


def capability(monkeypatch: pytest.MonkeyPatch, of_device: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: of_device)


def resolve(others_lacking: int = 0, before: str | None = None, **hparams: Any) -> str:
    return resolve_precision(parse_hparams(hparams), GPU, Ranks(others_lacking), before)


@pytest.mark.parametrize(
    ("of_device", "native"),
    [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True)],
)
def test_bfloat16_is_native_from_ampere_on(
    of_device: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capability(monkeypatch, of_device)
    assert has_bfloat16(GPU) is native
    assert not has_bfloat16(CPU)


def test_auto_is_what_the_weakest_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, (8, 0))
    assert resolve() == "bfloat16"
    assert resolve(others_lacking=1) == "float16"
    capability(monkeypatch, (7, 5))
    assert resolve() == "float16"
    assert resolve_precision(parse_hparams({}), CPU, SingleProcess()) == "float16"


def test_a_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, (8, 0))
    assert resolve(amp_dtype="float16") == "float16"
    assert resolve(others_lacking=3, amp_dtype="bfloat16") == "bfloat16"
    assert resolve(amp=False) == "float32"
    assert resolve(amp=False, before="bfloat16") == "float32"


def test_a_resumed_run_keeps_its_precision_if_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    capability(monkeypatch, (8, 0))
    assert resolve(before="float16") == "float16"
    assert resolve(before="bfloat16") == "bfloat16"
    assert resolve(others_lacking=1, before="bfloat16") == "float16"
    assert resolve(before="float32") == "bfloat16"  # amp was off: as in a new run
