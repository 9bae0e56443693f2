"""Comparisons: contenders measured in turn, A B A B, so that all share the machine's moods."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bench.measuring import ContenderSpec, Settings
from bench.process import ContenderError, ContenderProcess
from bench.results import ComparisonResult, ContenderResult

T = TypeVar("T")

Advance = Callable[[str, float], None]
"""Told what is done next, and how many expected seconds of work are behind."""

# What a contender takes to import, build and warm up, about: for the time left that is shown.
SETUP_SECONDS = 8.0


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    Attributes:
        name: on the command line and in results.
        title: for people.
        unit: of work.
        contenders: at most one of them ours.
        prepare: makes what all contenders need, in the settings' scratch folder.
        needs: says why the comparison cannot run here; None if it can.
        seconds: of one measurement.
        repeats: measurements of each contender; None takes what the user asks for.
    """

    name: str
    title: str
    unit: str
    contenders: tuple[ContenderSpec, ...]
    prepare: Callable[[Settings], None] | None = None
    needs: Callable[[], str | None] = lambda: None
    seconds: float = 6.0
    repeats: int | None = None

    def expected_seconds(self, *, seconds: float | None, repeats: int) -> float:
        """What it takes, about."""
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
    """Measure all contenders of a comparison; those that fail are reported and left out.

    Args:
        comparison: what to compare.
        settings: what contenders are told.
        repeats: measurements of each contender, where the comparison leaves it open.
        seconds: of one measurement; None takes the comparison's.
        advance: is told of progress.
    """
    seconds = comparison.seconds if seconds is None else seconds
    results = [ContenderResult(spec.name, spec.role) for spec in comparison.contenders]
    found = ComparisonResult(comparison.name, comparison.title, comparison.unit, results)
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
            _attempt(comparison, result, process.wait_built)
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
    return found


def _attempt(comparison: Comparison, result: ContenderResult, action: Callable[[], T]) -> T | None:
    """What an action of a contender gives; None where it fails, which is noted and told, or did."""
    if result.error is not None:
        return None
    try:
        return action()
    except ContenderError as error:
        result.error = error.summary
        print(f"{comparison.name}: {result.name} failed: {error}", file=sys.stderr, flush=True)
        return None
