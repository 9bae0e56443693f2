"""Tables of metrics, for terminals and Markdown."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from reporting.coco_metrics import MEANINGS, METRICS


def format_metric(value: float) -> str:
    """Format a metric; -1, for no annotations, becomes a dash."""
    return "–" if value < 0 else f"{value:.4f}"


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """Create a table of COCO's 12 metrics for a terminal."""
    table = Table(title="COCO metrics", title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    for name in METRICS:
        table.add_row(
            name, format_metric(metrics[name]), MEANINGS[name], end_section=name in _LAST_OF_KIND
        )
    return table


def class_table(ap_per_class: Mapping[str, float], *, columns: int = 3) -> Table:
    """Create a table of the AP of each class for a terminal, ordered as in `class_rows`."""
    table = Table(title="AP per class", title_justify="left", header_style="bold")
    rows = class_rows(ap_per_class, columns=columns)
    for _ in range(len(rows[0]) // 2 if rows else 0):
        table.add_column("class")
        table.add_column("AP", justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def class_rows(ap_per_class: Mapping[str, float], *, columns: int) -> list[list[str]]:
    """Return name and AP of each class, best first, filling `columns` pairs of columns downwards.

    A class without annotations has no AP and comes last.
    """
    ordered = sorted(ap_per_class.items(), key=lambda each: -each[1])
    height = max(-(-len(ordered) // columns), 1)
    pairs = [(name, format_metric(value)) for name, value in ordered]
    width = -(-len(pairs) // height)
    pairs += [("", "")] * (height * width - len(pairs))
    return [[text for pair in pairs[row::height] for text in pair] for row in range(height)]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; vertical bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        "| " + " | ".join(str(text).replace("|", "\\|") for text in line) + " |\n" for line in lines
    )


_LAST_OF_KIND = ("APl",)
