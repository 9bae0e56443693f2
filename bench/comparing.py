"""Comparisons: contenders measured in turn (A B A B), so that varying load affects all of them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bench.measuring import ContenderSpec, Settings
from bench.process import ContenderError, ContenderProcess
from bench.results import ComparisonResult, ContenderResult

T = TypeVar("T")

Advance = Callable[[str, float], None]
"""Reports progress: the current activity, and how many of the expected seconds have been done."""

# Rough time that a contender takes to import, build and warm up, for the estimate of time left.
SETUP_SECONDS = 8.0


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    Attributes:
        name: Name on the command line and in results.
        title: Title in reports.
        unit: Unit of the rates.
        contenders: The contenders, of which at most one is ours.
        prepare: Generates what all contenders need, in the settings' scratch folder.
        why_unavailable: Returns why the comparison cannot run here, or None if it can.
        seconds: Length of one measurement.
        repeats: Measurements per contender; None for the user's choice.
    """

    name: str
    title: str
    unit: str
    contenders: tuple[ContenderSpec, ...]
    prepare: Callable[[Settings], None] | None = None
    why_unavailable: Callable[[], str | None] = lambda: None
    seconds: float = 6.0
    repeats: int | None = None

    def expected_seconds(self, *, seconds: float | None, repeats: int) -> float:
        """Estimate the time of the comparison."""
        each = self.seconds if seconds is None else seconds
        return len(self.contenders) * (SETUP_SECONDS + each * (self.repeats or repeats))


def run_comparison(
    comparison: Comparison,
    settings: Settings,
    *,
    repeats: int,
    seconds: float | None = None,
    advance: Advance = lambda _, __: None,
) -> ComparisonResult:
    """Measure all contenders of a comparison; failures are recorded, and the others go on.

    Args:
        comparison: The comparison.
        settings: Settings for the contenders.
        repeats: Measurements per contender, unless the comparison sets them.
        seconds: Length of one measurement; None for the comparison's.
        advance: Called with progress.
    """
    seconds = comparison.seconds if seconds is None else seconds
    results = [
        ContenderResult(spec.name, spec.role, options=spec.options)
        for spec in comparison.contenders
    ]
    comparison_result = ComparisonResult(
        comparison.name, comparison.title, comparison.unit, results
    )
    advance(f"{comparison.name}: preparing", 0.0)
    if comparison.prepare is not None:
        comparison.prepare(settings)
    processes: list[ContenderProcess] = []
    try:
        for number, spec in enumerate(comparison.contenders):
            log = settings.scratch / f"{comparison.name}-{number}.log"
            processes.append(ContenderProcess(spec, settings, log))
        pairs = list(zip(processes, results, strict=True))
        for process, result in pairs:
            _attempt(comparison, result, process.wait_until_built)
        for process, result in pairs:
            _attempt(comparison, result, process.warm_up)
            advance(f"{comparison.name}: starting", SETUP_SECONDS)
        for _ in range(comparison.repeats or repeats):
            for process, result in pairs:
                advance(f"{comparison.name}: {result.name}", 0.0)
                measured = _attempt(comparison, result, lambda p=process: p.measure(seconds))  # type: ignore[misc]
                if measured is not None:
                    result.measurements.append(measured)
                advance(f"{comparison.name}: {result.name}", seconds)
        for process, result in pairs:
            result.memory_mib = _attempt(comparison, result, process.finish) or {}
    finally:
        for process in processes:
            process.close()
    return comparison_result


def _attempt(comparison: Comparison, result: ContenderResult, action: Callable[[], T]) -> T | None:
    """Run an action of a contender; record and print its failure, and skip what follows one."""
    if result.error is not None:
        return None
    try:
        return action()
    except ContenderError as error:
        result.error = error.summary
        print(f"{comparison.name}: {result.name} failed: {error}", file=sys.stderr, flush=True)
        return None
