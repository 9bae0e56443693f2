"""The plots of a report, in the style of a single run's plots."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cluster.report.records import ExperimentRecord
from cluster.report.search import SearchTrial, TrialOutcome
from cluster.report.speed import ScalingPoint
from reporting.plots import COLORS, Series, new_figure

_LINES = ("-", "--", ":", "-.")
_GREY = "#999999"
# Losses within this factor get a linear scale: a log scale would have too few ticks.
_LINEAR_RANGE = 5
_MAX_POINTS = 500
_OUTCOME_COLORS = {
    TrialOutcome.FINISHED: COLORS[2],
    TrialOutcome.STOPPED: _GREY,
    TrialOutcome.FAILED: COLORS[1],
    TrialOutcome.CANCELED: COLORS[3],
    TrialOutcome.RUNNING: COLORS[4],
}


def label_of(experiment: ExperimentRecord) -> str:
    """Return an experiment's label in a legend."""
    slots = "1 slot" if experiment.slots == 1 else f"{experiment.slots} slots"
    trial = f", best trial {experiment.main_trial.id}" if experiment.is_search else ""
    return f"{slots} (experiment {experiment.id}{trial})"


def plot_speed(workloads: Mapping[str, Sequence[ScalingPoint]]) -> Figure:
    """Plot samples per second by number of slots: medians with quartiles, and the ideal line.

    The line of a workload connects its fastest experiments at each number of slots.
    """
    figure, axes = new_figure("Training speed by number of slots", "slots", "samples per second")
    for number, (name, points) in enumerate(workloads.items()):
        color, several = COLORS[number % len(COLORS)], len(workloads) > 1
        fastest = {
            point.slots: point.speed.median
            for point in sorted(points, key=lambda point: point.speed.median)
        }
        slots = sorted(fastest)
        if len(slots) > 1:
            ends = (slots[0], slots[-1])
            ideal = {point.slots: point.ideal for point in points}
            axes.plot(
                ends,
                [ideal[end] for end in ends],
                color=color if several else _GREY,
                linestyle="--",
                linewidth=1.2,
                label=f"ideal: {name}" if several else "ideal",
            )
        axes.plot(slots, [fastest[each] for each in slots], color=color, linewidth=1.8)
        axes.errorbar(
            [point.slots for point in points],
            [point.speed.median for point in points],
            yerr=[
                [point.speed.median - point.speed.low for point in points],
                [point.speed.high - point.speed.median for point in points],
            ],
            color=color,
            linestyle="none",
            marker="o",
            markersize=5,
            capsize=3,
            label=name if several else "measured",
        )
        for point in points:
            if point.speed.median == fastest[point.slots]:
                axes.annotate(
                    f"{point.speed.median:.3g}"
                    + (f" ({point.efficiency:.0%})" if len(slots) > 1 else ""),
                    # Above the bar: the line to the next point continues to the right.
                    (point.slots, point.speed.high),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    color=color,
                    fontsize=9,
                    annotation_clip=False,
                )
    slot_counts = sorted({point.slots for points in workloads.values() for point in points})
    axes.set_xticks(slot_counts)
    axes.set_xlim(0, slot_counts[-1] * 1.12)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def plot_loss(curves: Mapping[str, Series], *, longest: float) -> Figure:
    """Plot training loss over wall-clock time, one line per experiment.

    In a long run, adjacent reports are averaged, since their noise would hide the trend.

    Args:
        curves: Seconds and losses by label.
        longest: Upper limit of the time axis in seconds, the same for all plots of a report.
    """
    curves = {name: _downsample(series) for name, series in curves.items()}
    figure, axes = _against_time(
        "Training loss against wall clock", "training loss", curves, longest
    )
    positive = [value for _, y in curves.values() for value in y if value > 0]
    if positive and max(positive) > _LINEAR_RANGE * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def plot_ap(curves: Mapping[str, Series], *, longest: float) -> Figure:
    """Plot AP on the validation split over wall-clock time; arguments as in `plot_loss`."""
    figure, axes = _against_time(
        "Average precision against wall clock", "AP", curves, longest, marker="o", markersize=3.5
    )
    highest = max((value for _, y in curves.values() for value in y), default=0.0)
    axes.set_ylim(0, min(1.02, 1.15 * highest) if highest > 0 else 1)
    return figure


def plot_search(metric: str, trials: Sequence[SearchTrial]) -> Figure:
    """Plot the metric of a search's trials over their batches.

    The best trial's line is thick; a cross marks the end of a trial that the searcher stopped.

    Args:
        metric: The metric that the search optimizes.
        trials: The trials, best first. Those without an evaluation are not drawn.
    """
    figure, axes = new_figure("Trials of the search", "batches", metric)
    drawn = [each for each in trials if each.best is not None]
    counts = {name: sum(each.outcome == name for each in drawn) for name in TrialOutcome}
    labelled: set[str] = set()
    for rank, each in reversed(list(enumerate(drawn))):
        x, y = each.trial.record.series("validation", metric, against="batches")
        best = rank == 0
        color = COLORS[0] if best else _OUTCOME_COLORS[each.outcome]
        label = f"best: trial {each.trial.id}, {each.outcome}" if best else None
        others = counts[each.outcome] - (each.outcome == drawn[0].outcome)
        if not best and each.outcome not in labelled:
            labelled.add(each.outcome)
            label = f"{each.outcome} ({others})"
        stopped = each.outcome is TrialOutcome.STOPPED
        axes.plot(
            x,
            y,
            color=color,
            linewidth=2.4 if best else 1.1,
            marker="x" if stopped else "o",
            markevery=[-1] if stopped else None,
            markersize=7 if stopped else 4 if best else 2.5,
            label=label,
        )
    axes.set_xlim(left=0)
    if drawn:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9)
    return figure


def _against_time(
    title: str, name: str, curves: Mapping[str, Series], longest: float, **style: Any
) -> tuple[Figure, Axes]:
    unit, seconds = _time_unit(longest)
    figure, axes = new_figure(title, f"wall clock, {unit}", name)
    for number, (label, (x, y)) in enumerate(curves.items()):
        axes.plot(
            [value / seconds for value in x],
            y,
            color=COLORS[number % len(COLORS)],
            linestyle=_LINES[number // len(COLORS) % len(_LINES)],
            linewidth=1.6,
            label=label,
            **style,
        )
    axes.set_xlim(0, max(1.03 * longest / seconds, 1e-3))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    if curves:
        axes.legend(frameon=False, fontsize=9)
    return figure, axes


def _downsample(series: Series) -> Series:
    """Average groups of adjacent points, so that at most `_MAX_POINTS` remain."""
    x, y = (np.asarray(values, dtype=float) for values in series)
    group_size = -(-len(x) // _MAX_POINTS)
    if group_size <= 1:
        return series
    starts = np.arange(0, len(x), group_size)
    counts = np.diff([*starts, len(x)])
    return (
        (np.add.reduceat(x, starts) / counts).tolist(),
        (np.add.reduceat(y, starts) / counts).tolist(),
    )


def _time_unit(longest: float) -> tuple[str, float]:
    """Return a readable unit for a time axis, and its length in seconds."""
    if longest <= 300:
        return "seconds", 1.0
    if longest <= 3 * 3600:
        return "minutes", 60.0
    return "hours", 3600.0
