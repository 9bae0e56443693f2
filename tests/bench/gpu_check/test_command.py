"""The command as a user runs it: on the processor, and interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench.gpu_check import cli
from bench.gpu_check.plan import Part, Plan, Report
from bench.gpu_check.results import OK, Row

ROOT = Path(__file__).resolve().parents[3]


def invoke(parts: tuple[Part, ...], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(cli, "PARTS", parts)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    command = typer.Typer()
    command.command()(cli.main)
    return CliRunner().invoke(command, ["--device", "cpu", *arguments], env={"COLUMNS": "200"})


def good(plan: Plan, report: Report) -> None:
    report(Row("good", "what it does", OK))


def interrupting(plan: Plan, report: Report) -> None:
    report(Row("slow", "its first half", OK))
    raise KeyboardInterrupt


def failing(plan: Plan, report: Report) -> None:
    raise ValueError("a wrong turn")


def test_an_interrupted_run_shows_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tuple(Part(run.__name__, "", (1.0, 1.0), run) for run in (good, interrupting, failing))
    out = tmp_path / "found.json"
    ran = invoke(parts, monkeypatch, "--out", str(out))
    assert ran.exit_code == 130, ran.output
    assert "its first half" in ran.output
    assert "2 within their limits, then interrupted" in ran.output
    found = json.loads(out.read_text())
    assert not found["complete"]
    assert [row["name"] for row in found["rows"]] == ["what it does", "its first half"]


def test_a_failure_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tuple(Part(run.__name__, "", (1.0, 1.0), run) for run in (failing, good))
    ran = invoke(parts, monkeypatch)
    assert ran.exit_code == 1, ran.output
    assert "1 within their limits, 1 FAILED" in ran.output
    assert "FAIL failing: : ValueError: a wrong turn" in ran.output
    assert invoke(parts, monkeypatch, "--parts", "good").exit_code == 0
    assert invoke(parts, monkeypatch, "--parts", "bad").exit_code == 2


@pytest.mark.slow
def test_the_check_of_a_processor(tmp_path: Path) -> None:
    """Parity, decoders and the speed of training, each in processes of their own."""
    out = tmp_path / "found.json"
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", *arguments, "--parts", "parity,decode,training"],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'data-prep'}"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "checking the processor, as asked for" in ran.stderr
    found = json.loads(out.read_text())
    assert found["complete"]
    assert found["device"] == "cpu"
    rows = {row["name"]: row for row in found["rows"]}
    assert {row["part"] for row in rows.values()} == {"parity", "decode", "training"}
    assert {row["verdict"] for row in rows.values()} <= {"ok", ""}
    assert rows["CMYK"]["limit"]["reason"]
    assert rows["a truncated file is named"]["value"] == 1.0
    assert rows["eager, batch 2"]["value"] > 0
    assert str(tmp_path) not in out.read_text()
