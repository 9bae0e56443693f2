"""The record of a local run, metrics.jsonl, read back as series."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting.plots import Series


@dataclass(frozen=True)
class RunRecord:
    """The reports of a run in the order of its batches, each batch once."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    def series(self, kind: str, metric: str, *, against: str) -> Series:
        """A metric of the reports of a kind against `batches`, `epochs` or `time`.

        Reports without the metric are passed over.
        """
        reports = [each for each in getattr(self, kind) if each.get(metric) is not None]
        return [each[against] for each in reports], [each[metric] for each in reports]

    @property
    def seconds(self) -> float:
        """From the first report to the last one, pauses between parts of the run included."""
        times = [each["time"] for each in [*self.training, *self.validation]]
        return max(times) - min(times) if times else 0.0


def read_record(file: Path) -> RunRecord:
    """Read metrics.jsonl.

    A run that was killed and resumed repeats batches after its last checkpoint: what was written
    later counts, and what the abandoned part reported past that place does not. A line that a kill
    cut off is passed over.

    Raises:
        FileNotFoundError: the file is missing; the message says what writes it.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such record; a run without a cluster writes it (make train-local)"
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
