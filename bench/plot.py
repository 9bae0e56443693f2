"""The ratios of a run as a picture."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reporting.plots import save_figure

_FASTER, _SLOWER, _INK, _GRID = "#0072B2", "#D55E00", "#333333", "#DDDDDD"


def plot_ratios(run: dict[str, Any]) -> Figure | None:
    """Our rate over that of the fastest peer, by comparison; None where there is no ratio.

    The axis is logarithmic: twice as fast lies as far from equal as half as fast. A line shows the
    least and the greatest ratio of pairs measured one after the other.
    """
    compared = [each for each in run["comparisons"] if each["ratio"]]
    if not compared:
        return None
    figure = Figure(figsize=(9, 1.6 + 0.62 * len(compared)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(compared))
    for place, each in zip(places, compared, strict=True):
        ratio, pairs = each["ratio"], each["pair_ratios"]
        color = _FASTER if ratio >= 1 else _SLOWER
        axes.barh(place, ratio - 1, left=1, height=0.55, color=color)
        axes.hlines(place, min(pairs), max(pairs), color=_INK, linewidth=1.4)
        axes.annotate(
            f"{ratio:.2f}×  against {each['best_peer']}",
            (max([1.0, ratio, *pairs]), place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_xscale("log")
    values = [value for each in compared for value in (each["ratio"], *each["pair_ratios"])]
    # Room at the right for the words behind the bars.
    lowest, highest = min(0.8, *values) * 0.95, max(1.5, *values)
    axes.set_xlim(lowest, highest * (highest / lowest) ** 0.5)
    # Over a wide range the words below the finer ticks would run into each other.
    fine = (0.75, 1.5) if highest < 10 else ()
    ticks = [
        tick for tick in sorted((0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, *fine)) if tick <= highest
    ]
    axes.set_xticks([tick for tick in ticks if tick >= lowest], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_yticks(list(places), [textwrap.fill(_short(each), 30) for each in compared])
    axes.invert_yaxis()
    axes.grid(True, axis="x", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)
    axes.set_title(
        "Speed of this project over that of the fastest peer",
        loc="left",
        color=_INK,
        fontsize=12,
        fontweight="bold",
    )
    machine, settings = run["machine"], run["settings"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cores']} CPU cores"
    warning = ", a quick run: says nothing" if run["quick"] else ""
    warning += ", on a busy machine" if run["machine_busy"] else ""
    axes.set_xlabel(
        f"{settings['model']}, {settings['image_size']} px, {where}, {run['made'][:10]}{warning}",
        color=_INK,
        fontsize=9,
        loc="left",
    )
    return figure


def save_plot(run: dict[str, Any], stem: Path) -> list[Path]:
    """Write the picture as PNG and SVG; nothing where there is no ratio."""
    figure = plot_ratios(run)
    return save_figure(figure, stem) if figure is not None else []


def _short(comparison: dict[str, Any]) -> str:
    """A comparison's title up to its details."""
    title: str = comparison["title"]
    return title.partition(":")[0].partition(",")[0]
