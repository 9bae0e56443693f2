"""`python -m bench` as a user runs it, on the cheapest comparisons."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench import cli
from bench.comparing import Comparison
from bench.measuring import ContenderSpec

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'data-prep'}"}
    environment["COLUMNS"] = "200"
    return subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--threads", "1", *map(str, arguments)],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def results(folder: Path) -> Any:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_results_are_complete(mini_coco: Path, tmp_path: Path) -> None:
    ran = bench("--only", "coco-metrics", "--only", "gpu-training-loop", "--data", mini_coco,
                "--out", tmp_path)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    run = results(tmp_path)
    assert run["quick"] is True
    assert run["versions"]["effdet"] == "0.4.1"
    assert run["machine"]["cores"] >= 1
    assert run["settings"]["data_name"] == mini_coco.name
    assert str(tmp_path) not in json.dumps(run), "paths mean nothing on another machine"

    comparison = run["comparisons"][0]
    assert comparison["name"] == "coco-metrics"
    ours, peer = comparison["subjects"]
    assert [ours["role"], peer["role"]] == ["ours", "peer"]
    for each in (ours, peer):
        assert each["error"] is None
        assert each["rate"] > 0
        assert each["memory_mib"]["process"] > 10
        assert set(each["stage_seconds"]) == {"ground truth", "detections", "metrics"}
    assert comparison["ratio"] == pytest.approx(ours["rate"] / peer["rate"])
    assert comparison["best_peer"] == "pycocotools"
    # Both computed the same metrics, and these are not trivial.
    assert comparison["outcome_difference"] < 1e-9
    assert 0.1 < ours["measurements"][0]["outcome"]["AP50"] < 0.95

    (table,) = tmp_path.glob("*.md")
    assert "pycocotools" in table.read_text()
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md", ".png", ".svg"}
    skipped = [each["name"] for each in run["skipped"]]
    if run["machine"]["gpu"] is None:
        assert skipped == ["gpu-training-loop"]
        assert "skipped gpu-training-loop: " in ran.stderr


def test_a_failing_contender_is_reported_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders = (
        ContenderSpec("working", "ours", "tests.bench.contenders:Counting"),
        ContenderSpec("broken", "peer", "tests.bench.contenders:MissingFile"),
    )
    comparison = Comparison("counting", "Counting", "images/s", contenders)
    monkeypatch.setattr(cli, "COMPARISONS", (comparison,))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    command = typer.Typer()
    command.command()(cli.main)
    out = tmp_path / "out"
    arguments = ["--quick", "--data", str(tmp_path), "--out", str(out)]
    ran = CliRunner().invoke(command, arguments, env={"COLUMNS": "200"})

    assert ran.exit_code == 1, ran.output
    reason = "FileNotFoundError: no file images/1.jpg"
    assert f"FAILED counting: broken: {reason}" in ran.output
    found = results(out)["comparisons"][0]
    assert found["ratio"] is None
    assert [each["error"] for each in found["subjects"]] == [None, reason]
    assert found["subjects"][0]["rate"] > 0
    assert str(tmp_path) not in json.dumps(found), "paths mean nothing on another machine"
    (table,) = out.glob("*.md")
    assert f"FAILED: {reason}" in table.read_text()
    assert not list(out.glob("*.png")), "there is no ratio to plot"


def test_an_unknown_comparison_is_rejected(tmp_path: Path) -> None:
    ran = bench("--only", "speed", "--data", tmp_path, "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert "unknown comparison speed; choose from training-step, " in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_data_set_is_rejected(tmp_path: Path) -> None:
    ran = bench("--only", "coco-metrics", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert "nowhere: no such folder" in ran.stderr
