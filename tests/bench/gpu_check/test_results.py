"""Verdicts, the summary and the order of parts."""

import math
from pathlib import Path

import pytest

from bench.gpu_check import cli, parity
from bench.gpu_check.parts import PARTS
from bench.gpu_check.plan import Part, Plan, failure, run_part, select
from bench.gpu_check.results import FAILED, LEFT_OUT, OK, SHOWN, Limit, Row, measured, summary
from bench.process import ContenderError
from experiments.runtime.gpus import DeviceError
from tests.bench.settings import small_settings


def plan(tmp_path: Path, device: str = "cpu", minutes: float = 1.0) -> Plan:
    settings = small_settings(tmp_path)
    made = cli.plan_for(device, settings, minutes=minutes, quick=True)  # type: ignore[arg-type]
    assert made.device == device
    return made


def rows_of(part: Part, plan: Plan) -> list[Row]:
    rows: list[Row] = []
    run_part(part, plan, rows.append)
    return rows


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [(1.0, False, OK), (1.1, False, FAILED), (1.1, True, OK), (0.9, True, FAILED)],
)
def test_limits(value: float, at_least: bool, verdict: str) -> None:
    limit = Limit(1.0, "", at_least=at_least)
    assert measured("part", "what", value, limit=limit).verdict == verdict
    assert measured("part", "what", math.nan, limit=limit).verdict == FAILED
    assert measured("part", "what", value).verdict == SHOWN


def test_the_json_file_has_no_nan() -> None:
    row = measured("part", "what", math.nan, limit=Limit(1.0, "why"))
    assert row.as_dict()["value"] is None
    assert row.as_dict()["shown"] == "nan"
    assert row.as_dict()["limit"]["reason"] == "why"


def test_the_summary_counts() -> None:
    rows = [Row("a", "x", OK), Row("a", "y", OK), Row("b", "z", FAILED), Row("b", "w", LEFT_OUT)]
    assert summary(rows) == "2 within their limits, 1 left out, 1 FAILED"
    assert summary([]) == "nothing was checked"


def test_parts_are_chosen_by_name() -> None:
    assert select(PARTS, "") == list(PARTS)
    assert [part.name for part in select(PARTS, "parity, machine")] == ["machine", "parity"]
    with pytest.raises(ValueError, match="unknown part speeed; choose from machine, parity"):
        select(PARTS, "parity,speeed")


def test_what_a_part_cannot_have(tmp_path: Path) -> None:
    def run(plan: Plan, report: object) -> None:
        raise ValueError("a wrong turn\nand more")

    part = Part("part", "what", (1.0, 1.0), run, needs=("torch", "no_such.module", "nor_this"))
    (row,) = rows_of(part, plan(tmp_path))
    assert row.verdict == LEFT_OUT
    assert row.detail == "needs no_such.module, nor_this, which is not installed"
    part = Part("part", "what", (1.0, 1.0), run, gpu_only="no GPU is used")
    assert rows_of(part, plan(tmp_path))[0].detail == "no GPU is used"
    assert rows_of(part, plan(tmp_path, "cuda"))[0].verdict == FAILED
    (row,) = rows_of(Part("part", "what", (1.0, 1.0), run), plan(tmp_path, minutes=-1.0))
    assert row.detail == "no time is left (MINUTES=)"
    (row,) = rows_of(Part("part", "what", (1.0, 1.0), run), plan(tmp_path))
    assert (row.verdict, row.detail) == (FAILED, "ValueError: a wrong turn")


def test_too_little_memory_is_no_failure() -> None:
    error = ContenderError("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert failure("speed", "batch 128", error).verdict == LEFT_OUT
    assert failure("speed", "batch 128", ContenderError("ValueError: no")).verdict == FAILED


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "require_usable_gpus", lambda: None)
    monkeypatch.setattr(cli, "idle_gpus", lambda: None)
    monkeypatch.setattr(cli.torch.cuda, "is_available", lambda: False)
    device, line = cli.choose_device("auto")
    assert (device, "smaller numbers" in line) == ("cpu", True)
    with pytest.raises(DeviceError, match="DEVICE=cpu"):
        cli.choose_device("cuda")
    monkeypatch.setattr(cli, "idle_gpus", lambda: "this machine has 2 NVIDIA GPU(s)")
    with pytest.raises(DeviceError, match="this machine has 2"):
        cli.choose_device("auto")
    assert cli.choose_device("cpu")[0] == "cpu"
    monkeypatch.setattr(cli.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cli.torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert cli.choose_device("auto") == ("cuda", "checking NVIDIA L4")
    monkeypatch.setattr(cli.torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert parity.precisions("cuda") == ["float32", "TF32", "float16"]


def test_each_part_of_a_gpu_fits_in_ten_minutes() -> None:
    assert sum(part.expected_seconds("cuda") for part in PARTS) <= 600
