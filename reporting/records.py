"""Reads the metrics of a run without a cluster, metrics.jsonl, as series."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting.plots import Series


@dataclass(frozen=True)
class RunRecord:
    """The reports of a run in order of batches, without duplicates."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    def series(self, kind: str, metric: str, *, against: str) -> Series:
        """Return a metric as a series over `batches`, `epochs` or `time`.

        Args:
            kind: `training` or `validation`.
            metric: The metric. Reports without it are skipped.
            against: The x axis.
        """
        reports = [each for each in getattr(self, kind) if each.get(metric) is not None]
        return [each[against] for each in reports], [each[metric] for each in reports]

    @property
    def seconds(self) -> float:
        """Time from the first report to the last, including pauses between resumes."""
        times = [each["time"] for each in [*self.training, *self.validation]]
        return max(times) - min(times) if times else 0.0


def read_record(file: Path) -> RunRecord:
    """Read metrics.jsonl.

    A run that was killed and resumed repeats the batches after its last checkpoint: a report
    replaces earlier ones of the same or later batches. A truncated line is skipped.

    Raises:
        FileNotFoundError: The file is missing; the message says what writes it.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; a run without a cluster writes it (make train-local)"
        )
    kept: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            report = json.loads(line)
        except ValueError:
            continue
        kept = [each for each in kept if not _replaced(each, report)]
        kept.append(report)
    return RunRecord(
        training=[each for each in kept if each["kind"] == "train"],
        validation=[each for each in kept if each["kind"] == "validation"],
    )


def _replaced(earlier: dict[str, Any], later: dict[str, Any]) -> bool:
    if earlier["batches"] == later["batches"]:
        return earlier["kind"] == later["kind"]
    return earlier["batches"] > later["batches"]
