"""What speed on several ranks is compared, and its table and plot."""

import subprocess
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from bench import scaling
from bench.cli import select_comparisons
from bench.measuring import Measurement
from bench.results import ComparisonResult, ContenderResult
from tests.bench.settings import small_settings

HEAD = "1234567"


def compared(counts: list[int], baseline: str | None) -> list[scaling._Case]:
    return list(scaling._cases(counts, ["torchrun", "horovodrun"], baseline))


def result(rates: dict[str, float], baseline: str | None = None) -> dict[str, Any]:
    """A run's comparison in which each contender had this rate, and one of 0 failed."""
    contenders = []
    for case in compared([2, 4], baseline):
        spec, rate = case.spec(), rates[case.name]
        each = ContenderResult(spec.name, spec.role, options=spec.options)
        if rate:
            each.measurements += [Measurement(rate, 1.0), Measurement(rate, 1.0)]
        else:
            each.error = "it fell"
        contenders.append(each)
    return ComparisonResult(scaling.NAME, "title", "images/s", contenders).as_dict()


def test_every_launcher_and_kind_of_batch_norm_is_compared() -> None:
    cases = compared([2, 4], HEAD)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) == 1 + 2 * 3 + 2 * 4
    assert names[0] == "1 rank"
    assert "4 ranks of horovodrun, sync_bn, all through Horovod" in names
    assert f"2 ranks of torchrun, sync_bn, {HEAD}" in names
    assert all(callable(case.spec().resolve()) for case in cases)
    assert {
        case.spec().name: scaling._case({"options": case.spec().options}) for case in cases
    } == {case.name: case for case in cases}


def test_horovod_is_left_out_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "importlib", SimpleNamespace(util=mock.Mock()))
    scaling.importlib.util.find_spec.return_value = None
    assert scaling._launchers() == ["torchrun"]
    scaling.importlib.util.find_spec.return_value = ModuleSpec("horovod", None)
    assert scaling._launchers() == ["torchrun", "horovodrun"]


def test_shares_and_ratios() -> None:
    rates = {case.name: 100.0 for case in compared([2, 4], HEAD)}
    rates |= {
        "2 ranks of torchrun": 180.0,
        "2 ranks of torchrun, sync_bn": 150.0,
        f"2 ranks of torchrun, sync_bn, {HEAD}": 75.0,
        "4 ranks of torchrun, sync_bn": 0.0,
    }
    head, *rows = scaling.scaling_table(result(rates, HEAD))
    assert all(len(row) == len(head) for row in rows)
    by_case = {row[:2]: row[2:] for row in rows}
    assert by_case["1", "no"] == ("100.0", "100.0 .. 100.0", "100%", "", "")
    assert by_case["2 torchrun", "no"] == ("180.0", "180.0 .. 180.0", "90%", "", "")
    assert by_case["2 torchrun", "yes"] == ("150.0", "150.0 .. 150.0", "75%", "83%", "2.00")
    assert by_case["2 torchrun", f"yes, {HEAD}"][2:] == ("38%", "42%", "")
    assert by_case["4 torchrun", "yes"][0] == "FAILED: it fell"


def test_the_plot_has_a_panel_for_each_launcher() -> None:
    comparison = result({case.name: 100.0 for case in compared([2, 4], None)})
    figure = scaling.plot_scaling(comparison, "caption")
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["torchrun", "horovodrun"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 4]
    comparison["subjects"][0]["rate"] = None
    assert scaling.plot_scaling(comparison, "caption") is None


def test_the_baseline_is_a_commit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--baseline no-such-commit: "):
        select_comparisons([scaling.NAME], "no-such-commit")
    [comparison] = select_comparisons([scaling.NAME], "HEAD")
    settings = small_settings(tmp_path)
    assert comparison.prepare is not None
    comparison.prepare(settings)
    revision = next(filter(None, (each.options["revision"] for each in comparison.contenders)))
    tree = scaling.baseline_tree(settings, revision)
    root = Path(scaling.__file__).parents[1]
    show = ["git", "show", "HEAD:experiments/train.py"]
    committed = subprocess.run(show, cwd=root, check=True, capture_output=True, text=True).stdout
    assert (tree / "experiments" / "train.py").read_text() == committed
