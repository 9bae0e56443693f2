"""A run of the benchmarks as Markdown and as tables on a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.counting import table as counted_steps
from bench.scaling import NAME as SCALING
from bench.scaling import SCALING_NOTE, scaling_table

BenchmarkRun = dict[str, Any]
"""The contents of the JSON file, from which all reports are made."""

_COLUMNS = ("", "rate", "spread", "ratio", "pairs", "memory")


def heading(run: BenchmarkRun) -> list[str]:
    """Return lines that describe the machine, the settings and the versions."""
    machine, settings = run["machine"], run["settings"]
    gpu = f", {machine['gpu']['name']}" if machine["gpu"] else ""
    revision = run["commit"].get("revision", "unknown")[:12]
    changed = " with changes" if run["commit"].get("changed") else ""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"{run['made'][:10]}, commit {revision}{changed}",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB{gpu}",
        f"{settings['model']} at {settings['image_size']} px, batch {settings['batch_size']}"
        f" ({settings['gpu_batch_size']} on a GPU), {settings['threads']} threads; images: "
        f"{settings['data_name']}",
        versions,
    ]
    if run["quick"]:
        lines.append("QUICK: a check that everything works; the figures are not measurements.")
    if run["machine_busy"]:
        lines.append(
            f"BUSY: the load was {machine['load_before']} before the first measurement; the "
            "figures are unreliable."
        )
    return lines


def rows(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return one row per contender, with the columns of _COLUMNS.

    Ratios are ours over the fastest peer: of the medians, and the range over adjacent measurements.
    """
    table: list[tuple[str, ...]] = []
    for contender in comparison["subjects"]:
        if contender["error"] is not None:
            table.append((contender["name"], f"FAILED: {contender['error']}", "", "", "", ""))
            continue
        is_ours = contender["role"] == "ours"
        pairs = comparison["pair_ratios"]
        ratio = comparison["ratio"] if is_ours else None
        rates = contender["rates"]
        table.append(
            (
                contender["name"],
                _rate(contender["rate"], comparison["unit"]),
                _spread(rates, comparison["unit"]) if len(rates) > 1 else "",
                f"{ratio:.2f}" if ratio else "",
                f"{min(pairs):.2f} .. {max(pairs):.2f}" if is_ours and pairs else "",
                _memory(contender["memory_mib"]),
            )
        )
    return table


def _table(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a comparison's table, its head first."""
    if comparison["name"] == SCALING:
        return scaling_table(comparison)
    return [_COLUMNS, *rows(comparison)]


def notes(comparison: dict[str, Any]) -> list[str]:
    """Return the sentences below a comparison's table."""
    sentences = [SCALING_NOTE] if comparison["name"] == SCALING else []
    for contender in comparison["subjects"]:
        stages = contender["stage_seconds"]
        if len(stages) > 1:
            total = sum(stages.values())
            shares = ", ".join(
                f"{name} {1000 * seconds:.3g} ms ({seconds / total:.0%})"
                for name, seconds in stages.items()
            )
            unit = "image" if comparison["unit"].startswith("images") else "evaluation"
            sentences.append(f"Stages of {contender['name']}, per {unit}: {shares}.")
    if comparison["outcome_difference"] is not None:
        sentences.append(
            f"Largest difference between the results: {comparison['outcome_difference']:.1e}."
        )
    return sentences


def markdown(run: BenchmarkRun) -> str:
    """Format the run as Markdown."""
    lines = ["# Benchmarks", "", *[f"- {line}" for line in heading(run)], ""]
    lines += [
        "The ratio is our median rate over that of the fastest peer; the pairs are the range of "
        "the ratio over adjacent measurements. Memory is the peak of the process, plus the private "
        "memory of its loader's workers.",
        "",
    ]
    for comparison in run["comparisons"]:
        head, *body = _table(comparison)
        lines += [f"## {comparison['title']}", ""]
        lines += ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        lines += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body
        ]
        lines += [""]
        for note in notes(comparison):
            lines += [note, ""]
    if run["counted_steps"]:
        lines += counted_steps.markdown_lines(run["counted_steps"])
    if run["skipped"]:
        lines += ["## Not measured", ""]
        lines += [f"- {each['title']}: {each['reason']}." for each in run["skipped"]]
    return "\n".join(lines).rstrip() + "\n"


def print_report(run: BenchmarkRun, console: Console) -> None:
    """Print the run as tables."""
    for line in heading(run):
        console.print(line, highlight=False, markup=False)
    for comparison in run["comparisons"]:
        table = Table(title=comparison["title"], title_justify="left", title_style="bold")
        head, *body = _table(comparison)
        for number, column in enumerate(head):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in body:
            table.add_row(*row)
        console.print()
        console.print(table)
        for note in notes(comparison):
            console.print(note, highlight=False, markup=False)
    if run["counted_steps"]:
        console.print()
        counted_steps.print_counts(run["counted_steps"], console)
    for each in run["skipped"]:
        console.print(f"\nnot measured: {each['title']}: {each['reason']}", highlight=False)


def _rate(value: float, unit: str) -> str:
    """Format a rate; for evaluations, the time of one instead."""
    if unit == "evaluations/s":
        return f"{1 / value:.3g} s"
    return f"{_round(value)} {unit}"


def _spread(rates: Sequence[float], unit: str) -> str:
    """Format the range of some rates, as in `_rate`."""
    if unit == "evaluations/s":
        return f"{1 / max(rates):.3g} .. {1 / min(rates):.3g} s"
    return f"{_round(min(rates))} .. {_round(max(rates))}"


def _round(value: float) -> str:
    """Format with three digits and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _memory(memory: dict[str, float]) -> str:
    """Format memory by kind, in GiB."""
    parts = []
    for kind, mib in memory.items():
        amount = f"{mib / 1024:.2f} GiB"
        parts.append(amount if kind == "process" else f"{amount} ({kind})")
    return " + ".join(parts)
