"""Contenders in their own processes: measured in turn, and reported if they fail."""

from pathlib import Path

import pytest

from bench.cli import select_comparisons
from bench.comparing import Comparison, run_comparison
from bench.comparisons import COMPARISONS
from bench.measuring import ContenderSpec, Measurement, Settings
from bench.results import ComparisonResult, ContenderResult
from tests.bench.settings import small_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path, model="efficientdet_d0")


def spec(target: str, role: str = "peer", **options: int) -> ContenderSpec:
    return ContenderSpec(target, role, f"tests.bench.contenders:{target}", options)  # type: ignore[arg-type]


def test_failed_contenders_are_reported_and_the_others_measured(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    contenders = (
        spec("Counting", "ours", images=3),
        spec("FailingToBuild"),
        spec("Killed"),
        ContenderSpec("missing", "peer", "tests.bench.contenders:Missing"),
    )
    comparison = Comparison("broken", "Broken", "images/s", contenders, seconds=0.01)
    advanced: list[float] = []
    result = run_comparison(
        comparison, settings, repeats=2, advance=lambda _, seconds: advanced.append(seconds)
    )

    ours, failing, killed, missing = result.contenders
    assert ours.error is None
    assert len(ours.rates) == 2
    assert ours.measurements[0].work % 3 == 0
    assert ours.memory_mib["process"] > 5
    assert failing.error == "ValueError: no such thing here"
    assert killed.error is not None
    assert "SIGKILL" in killed.error
    assert missing.error is not None
    assert "Missing" in missing.error
    assert result.ratio is None
    errors = capsys.readouterr().err
    assert "broken: FailingToBuild failed: ValueError: no such thing here" in errors
    assert "Traceback" in errors
    assert "about to be killed" in errors, "the last output of a killed contender is printed"
    # Progress adds up to the total, in spite of failures.
    assert sum(advanced) == pytest.approx(comparison.expected_seconds(seconds=None, repeats=2))


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda each: each.name)
def test_every_comparison_is_valid(comparison: Comparison) -> None:
    assert sum(each.role == "ours" for each in comparison.contenders) == 1
    names = [each.name for each in comparison.contenders]
    assert len(set(names)) == len(names)
    for each in comparison.contenders:
        assert callable(each.resolve())


def test_comparison_names_are_unique() -> None:
    names = [each.name for each in select_comparisons([])]
    assert len(set(names)) == len(names)


def contender(name: str, role: str, seconds: list[float], **outcome: float) -> ContenderResult:
    measurements = [Measurement(10, each, {"step": each}, outcome) for each in seconds]
    return ContenderResult(name, role, measurements)  # type: ignore[arg-type]


def test_the_ratio_is_relative_to_the_fastest_peer() -> None:
    result = ComparisonResult(
        "x",
        "X",
        "images/s",
        [
            contender("ours", "ours", [1.0, 2.0, 4.0], AP=0.5, AR=0.25),
            contender("slow", "peer", [10.0, 10.0, 10.0]),
            contender("fast", "peer", [3.0, 3.0, 2.0], AP=0.5, AR=0.375),
            contender("decoding", "reference", [0.1, 0.1, 0.1]),
        ],
    )
    assert result.best_peer is not None
    assert result.best_peer.name == "fast"
    assert result.ratio == pytest.approx(1.5)
    assert result.pair_ratios == pytest.approx([3.0, 1.5, 0.5])
    assert result.outcome_difference == pytest.approx(0.125)
    # Stages are seconds per unit of work, over all measurements.
    assert result.contenders[0].stages == {"step": pytest.approx(7 / 30)}


def test_a_failed_peer_gives_no_ratio() -> None:
    failed = contender("peer", "peer", [1.0])
    failed.error = "it broke"
    result = ComparisonResult("x", "X", "images/s", [contender("ours", "ours", [1.0]), failed])
    assert result.best_peer is None
    assert result.ratio is None
    assert result.pair_ratios == []
