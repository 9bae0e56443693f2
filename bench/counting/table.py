"""The counted steps as a table."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.counting.steps import STAGES, STEPS

NAME = "gpu-step-counts"
TITLE = "One training step on a GPU, counted"
_WIDTH = 112  # of the wider table
_STEP = "step (images a rank)"
_Row = tuple[str, ...]


def count_all(advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Count each of STEPS; `advance` is called with the name of each."""
    from bench.counting.trial_step import count_step

    counted = []
    for settings in STEPS:
        compiled = ", compiled" * settings.compiled
        advance(f"{NAME}: batch {settings.batch_size}, {settings.amp_dtype}{compiled}")
        stages = count_step(settings)
        counted.append(
            {
                "batch": settings.batch_size,
                "dtype": settings.amp_dtype,
                "sync_bn": settings.sync_bn,
                "compiled": settings.compiled,
                "stages": {name: counts.as_dict() for name, counts in stages.items()},
            }
        )
    return counted


def tables(counted: list[dict[str, Any]]) -> list[tuple[_Row, list[_Row]]]:
    """Return column names and rows: of launches, waits and collectives, and of megabytes."""
    launches, megabytes = [], []
    for step in counted:
        stages = step["stages"]
        options = [name for name in ("sync_bn", "compiled") if step[name]]
        name = ", ".join([f"{step['batch']} {step['dtype']}", *options])
        waits = sum(len(stages[stage]["waits"]) for stage in STAGES)
        collectives = sum(stages[stage]["collectives"] for stage in STAGES)
        per_image = [stages[stage]["bytes"] / 1e6 / step["batch"] for stage in STAGES]
        launches.append(
            (
                *(name, *_cells([stages[stage]["launches"] for stage in STAGES])),
                *(str(waits), str(collectives)),
            )
        )
        megabytes.append((name, *_cells(per_image)))
    return [
        ((_STEP, *STAGES, "launches", "waits", "collectives"), launches),
        ((_STEP, *STAGES, "MB an image"), megabytes),
    ]


def markdown_lines(counted: list[dict[str, Any]]) -> list[str]:
    """Return the counted steps as a section in Markdown."""
    lines = [f"## {TITLE}", ""]
    for columns, steps in tables(counted):
        lines += ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
        lines += [*("| " + " | ".join(row) + " |" for row in steps), ""]
    return lines


def print_counts(counted: list[dict[str, Any]], console: Console) -> None:
    """Print the counted steps as tables."""
    console.print(TITLE, style="bold")
    wide = Console(file=console.file, width=max(console.width, _WIDTH))
    for columns, steps in tables(counted):
        table = Table()
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in steps:
            table.add_row(*row)
        wide.print(table)


def _cells(values: Sequence[float]) -> list[str]:
    return [f"{value:,.0f}" for value in (*values, sum(values))]
