"""What is measured on a GPU, with a stand-in for its processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu_check import speed
from bench.gpu_check.plan import Plan
from bench.gpu_check.results import FAILED, LEFT_OUT, OK, SHOWN, Row
from bench.measuring import Measurement, Settings
from bench.process import ContenderError
from tests.bench.gpu_check.test_results import plan

OUT_OF_MEMORY = ContenderError("OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB")


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Images/s by loop and mode, which a test changes; an exception is raised instead."""
    found: dict[str, Any] = {"eager": 100.0, "default": 120.0, "compiled": 130.0, "graphs": 128.0}

    @contextlib.contextmanager
    def contender(target: str, settings: Settings, **options: Any) -> Iterator[Any]:
        assert options["device"] == "cuda"
        rate = found[options.get("mode") or target.partition(":")[2]]
        if isinstance(rate, Exception):
            raise rate
        yield SimpleNamespace(
            wait_until_built=lambda: None,
            warm_up=lambda: None,
            measure=lambda seconds: Measurement(work=rate * 2.0, seconds=2.0),
            finish=lambda: {"process": 10.0, "GPU": 5000.0},
        )

    monkeypatch.setattr(speed, "contender", contender)
    monkeypatch.setattr(speed, "data_folder", lambda option: tmp_path)
    monkeypatch.setattr(speed, "has_compiler", lambda: True)
    return found


def rows_of(run: Any, plan: Plan) -> dict[str, Row]:
    rows: list[Row] = []
    run(plan, rows.append)
    return {row.name: row for row in rows}


def test_what_is_compiled_must_not_be_slower(rates: dict[str, Any], tmp_path: Path) -> None:
    rows = rows_of(speed.training, plan(tmp_path, "cuda"))
    assert [row.verdict for row in rows.values()] == [SHOWN, OK, OK, OK]
    assert rows["eager, batch 2"].value == 100.0
    assert "5,000 MiB" in rows["eager, batch 2"].detail
    rates["compiled"] = 110.0
    rows = rows_of(speed.training, plan(tmp_path, "cuda"))
    assert [row.verdict for row in rows.values()] == [SHOWN, OK, FAILED, OK]


def test_one_size_that_does_not_fit(rates: dict[str, Any], tmp_path: Path) -> None:
    rates["graphs"] = OUT_OF_MEMORY
    row = rows_of(speed.training, plan(tmp_path, "cuda"))["graphs, batch 2"]
    assert (row.verdict, row.detail) == (LEFT_OUT, "out of memory")


def test_without_a_compiler(
    rates: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "has_compiler", lambda: False)
    rows = rows_of(speed.training, plan(tmp_path, "cuda"))
    assert [row.verdict for row in rows.values()] == [SHOWN, LEFT_OUT, LEFT_OUT, LEFT_OUT]
    assert rows["compiled, batch 2"].detail == "not possible: no C compiler"


def test_a_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not speed.has_compiler()
    (tmp_path / "clang").write_text("#!/bin/sh\n")
    (tmp_path / "clang").chmod(0o755)
    assert speed.has_compiler()


def test_no_time_is_left(rates: dict[str, Any], tmp_path: Path) -> None:
    rows = rows_of(speed.training, plan(tmp_path, "cuda", minutes=-1.0))
    assert {row.verdict for row in rows.values()} == {LEFT_OUT}


def test_input_must_keep_up_with_training(rates: dict[str, Any], tmp_path: Path) -> None:
    rates.update(Input=119.0, Evaluation=61.0)
    made = plan(tmp_path, "cuda")
    rows_of(speed.training, made)
    rows = rows_of(speed.images, made)
    assert [row.verdict for row in rows.values()] == [FAILED, SHOWN]
    assert [row.verdict for row in rows_of(speed.evaluation, made).values()] == [OK]
    # Where training was not measured, there is nothing to compare with.
    alone = rows_of(speed.images, plan(tmp_path, "cuda"))
    assert [row.verdict for row in alone.values()] == [SHOWN, SHOWN]
