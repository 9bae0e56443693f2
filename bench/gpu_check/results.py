"""What was checked: rows with a value, its limit and a verdict."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

OK, FAILED, LEFT_OUT, SHOWN = "ok", "FAIL", "left out", ""


@dataclass(frozen=True)
class Limit:
    """A bound of a value, and where it comes from."""

    bound: float
    reason: str
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a value is within the bound; NaN is not."""
        return value >= self.bound if self.at_least else value <= self.bound

    def times(self, factor: float) -> "Limit":
        """Return the limit for a bound that is relative to something measured."""
        return dataclasses.replace(self, bound=self.bound * factor)

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {number(self.bound)}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: The part that it belongs to.
        name: What was checked.
        verdict: OK, FAILED, LEFT_OUT, or SHOWN for a value without a limit.
        value: What was measured, if it is a number.
        unit: Its unit.
        limit: Its limit, if it has one.
        detail: What else is known, such as the reason of a failure.
    """

    part: str
    name: str
    verdict: str
    value: float | None = None
    unit: str = ""
    limit: Limit | None = None
    detail: str = ""

    def __str__(self) -> str:
        texts = [self.shown, f"({self.limit})" if self.limit else "", self.detail]
        what = " ".join(text for text in texts if text)
        return f"{self.verdict or '–'} {self.part}: {self.name}: {what}"

    @property
    def shown(self) -> str:
        """The value with its unit; empty if there is none."""
        return f"{number(self.value)} {self.unit}".strip() if self.value is not None else ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row in the form of the JSON file, which has no NaN and no infinity."""
        finite = self.value is not None and math.isfinite(self.value)
        return {**asdict(self), "value": self.value if finite else None, "shown": self.shown}


def measured(
    part: str,
    name: str,
    value: float,
    *,
    unit: str = "",
    limit: Limit | None = None,
    detail: str = "",
) -> Row:
    """Create the row of a number, judged by its limit if it has one."""
    verdict = SHOWN if limit is None else OK if limit.holds(value) else FAILED
    return Row(part, name, verdict, value, unit, limit, detail)


def number(value: float) -> str:
    """Format a number with three significant digits, large ones with all before the point."""
    if not math.isfinite(value) or value == 0 or abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> Table:
    """Create the table of all rows for a terminal."""
    drawn = Table(header_style="bold")
    for column in ("part", "what"):
        drawn.add_column(column)
    drawn.add_column("value", justify="right", no_wrap=True)
    drawn.add_column("limit", no_wrap=True)
    drawn.add_column("", no_wrap=True)
    drawn.add_column("detail")
    style = {OK: "green", FAILED: "red", LEFT_OUT: "yellow"}
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1].part != row.part
        last = index + 1 == len(rows) or rows[index + 1].part != row.part
        limit = str(row.limit) if row.limit else ""
        verdict = f"[{style[row.verdict]}]{row.verdict}[/]" if row.verdict else ""
        texts = (_plain(text) for text in (row.part if first else "", row.name, row.shown, limit))
        drawn.add_row(*texts, verdict, _plain(row.detail), end_section=last)
    return drawn


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def summary(rows: Sequence[Row]) -> str:
    """Count the verdicts in words."""
    counts = [
        (OK, "within their limits"),
        (SHOWN, "shown without a limit"),
        (LEFT_OUT, "left out"),
        (FAILED, "FAILED"),
    ]
    found = [(sum(row.verdict == verdict for row in rows), text) for verdict, text in counts]
    return ", ".join(f"{count} {text}" for count, text in found if count) or "nothing was checked"
