"""Plots of a run's metrics, from plain series."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cocodata.files import atomic_path

Series = tuple[Sequence[float], Sequence[float]]
"""x and y of a curve, of equal length."""

# Okabe and Ito's palette, which colour-blind people can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#333333"


def plot_losses(training: Mapping[str, Series], validation: Mapping[str, Series]) -> Figure:
    """Plot losses over batches, on a log scale because they differ by orders of magnitude.

    Args:
        training: Losses by name, drawn as solid lines.
        validation: Losses by name, drawn as dashed lines with a marker at each evaluation, in the
            same colour as the training loss of that name.
    """
    figure, axes = new_figure("Loss", "batches", "loss")
    names = list(dict.fromkeys([*training, *validation]))
    color = {name: COLORS[n % len(COLORS)] for n, name in enumerate(names)}
    for name, (x, y) in training.items():
        axes.plot(x, y, color=color[name], linewidth=1.6, label=f"training: {name}")
    for name, (x, y) in validation.items():
        axes.plot(
            x,
            y,
            color=color[name],
            linestyle="--",
            linewidth=1.2,
            marker="o",
            markersize=3.5,
            label=f"validation: {name}",
        )
    drawn = [value for _, y in [*training.values(), *validation.values()] for value in y]
    if any(value > 0 for value in drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(left=0)
    if drawn:
        axes.legend(frameon=False, fontsize=9)
    return figure


def plot_average_precision(curves: Mapping[str, Series]) -> Figure:
    """Plot average precision over epochs, with the last value at the end of each curve."""
    figure, axes = new_figure("Average precision on the validation split", "epochs", "AP")
    highest = 0.0
    for (name, (x, y)), color in zip(curves.items(), _cycled(len(curves)), strict=True):
        axes.plot(x, y, color=color, linewidth=1.8, marker="o", markersize=3.5, label=name)
        highest = max([highest, *y])
        if len(y):
            axes.annotate(
                f"{name} {y[-1]:.3f}",
                (x[-1], y[-1]),
                xytext=(8, 0),
                textcoords="offset points",
                color=color,
                va="center",
                fontsize=10,
                annotation_clip=False,
            )
    axes.set_ylim(0, min(1.02, 1.15 * highest) if highest > 0 else 1)
    axes.set_xlim(left=0)
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG, atomically.

    Args:
        figure: The figure.
        stem: The path without a suffix, in an existing folder.

    Returns:
        The files.
    """
    files = []
    for kind in ("png", "svg"):
        file = stem.with_suffix(f".{kind}")
        # No date, so that the same run produces the same files.
        metadata = {"Date": None} if kind == "svg" else None
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        files.append(file)
    return files


def new_figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Create an empty figure in the common style; without pyplot, which would keep it in memory."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold")
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return figure, axes


def _cycled(count: int) -> list[str]:
    return [COLORS[n % len(COLORS)] for n in range(count)]
