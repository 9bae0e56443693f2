"""A plot of a run's ratios."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.scaling import NAME as SCALING
from bench.scaling import plot_scaling
from reporting.plots import save_figure

_FASTER, _SLOWER, _INK, _GRID = "#0072B2", "#D55E00", "#333333", "#DDDDDD"


def plot_ratios(run: dict[str, Any]) -> Figure | None:
    """Plot our rate over the fastest peer's for each comparison; None if there is no ratio.

    The axis is logarithmic, so that twice and half as fast are equally far from equal. A line shows
    the range of the ratios of adjacent measurements.
    """
    comparisons = [each for each in run["comparisons"] if each["ratio"]]
    if not comparisons:
        return None
    figure = Figure(figsize=(9, 1.6 + 0.62 * len(comparisons)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(comparisons))
    for row, each in zip(rows, comparisons, strict=True):
        ratio, pairs = each["ratio"], each["pair_ratios"]
        color = _FASTER if ratio >= 1 else _SLOWER
        axes.barh(row, ratio - 1, left=1, height=0.55, color=color)
        axes.hlines(row, min(pairs), max(pairs), color=_INK, linewidth=1.4)
        axes.annotate(
            f"{ratio:.2f}×  against {each['best_peer']}",
            (max([1.0, ratio, *pairs]), row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_xscale("log")
    values = [value for each in comparisons for value in (each["ratio"], *each["pair_ratios"])]
    # Leave space for the labels to the right of the bars.
    lowest, highest = min(0.8, *values) * 0.95, max(1.5, *values)
    axes.set_xlim(lowest, highest * (highest / lowest) ** 0.5)
    # On a wide axis, the labels of the finer ticks would overlap.
    fine = (0.75, 1.5) if highest < 10 else ()
    ticks = [
        tick for tick in sorted((0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, *fine)) if tick <= highest
    ]
    axes.set_xticks([tick for tick in ticks if tick >= lowest], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_yticks(list(rows), [textwrap.fill(_short_title(each), 30) for each in comparisons])
    axes.invert_yaxis()
    axes.grid(True, axis="x", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)
    axes.set_title(
        "Speed of this project relative to the fastest peer",
        loc="left",
        color=_INK,
        fontsize=12,
        fontweight="bold",
    )
    settings = run["settings"]
    axes.set_xlabel(
        f"{settings['model']}, {settings['image_size']} px, {_circumstances(run)}",
        color=_INK,
        fontsize=9,
        loc="left",
    )
    return figure


def _circumstances(run: dict[str, Any]) -> str:
    machine = run["machine"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cores']} CPU cores"
    warning = ", quick run: not a measurement" if run["quick"] else ""
    warning += ", on a busy machine" if run["machine_busy"] else ""
    return f"{where}, {run['made'][:10]}{warning}"


def save_plots(run: dict[str, Any], stem: Path) -> list[Path]:
    """Write the plots as PNG and SVG: of the ratios, and of the speed over ranks."""
    figures = [(stem, plot_ratios(run))]
    for comparison in run["comparisons"]:
        if comparison["name"] == SCALING:
            caption = f"{comparison['title']}: {_circumstances(run)}"
            figures.append(
                (stem.with_name(f"{stem.name}-{SCALING}"), plot_scaling(comparison, caption))
            )
    return [
        file for path, figure in figures if figure is not None for file in save_figure(figure, path)
    ]


def _short_title(comparison: dict[str, Any]) -> str:
    """Return a comparison's title without its details."""
    title: str = comparison["title"]
    return title.partition(":")[0].partition(",")[0]
