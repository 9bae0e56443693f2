"""Training samples per second, and how they scale with the number of slots."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.report.records import ExperimentRecord, TrialRecord


@dataclass(frozen=True)
class Speed:
    """Training images per second over all ranks, after warm-up.

    Attributes:
        median: Median over reporting periods.
        low: First quartile.
        high: Third quartile.
        periods: Number of reporting periods.
        reported: Whether the trial reported its speed; if not, it was computed from the times of
            its reports.
    """

    median: float
    low: float
    high: float
    periods: int
    reported: bool


@dataclass(frozen=True)
class ScalingPoint:
    """An experiment's speed compared with linear scaling.

    Attributes:
        experiment: The experiment's number.
        slots: Slots per trial.
        speed: The measured speed.
        ideal: Images per second if speed scaled linearly from the fewest slots.
    """

    experiment: int
    slots: int
    speed: Speed
    ideal: float

    @property
    def efficiency(self) -> float:
        """The median speed as a fraction of the ideal."""
        return self.speed.median / self.ideal


def training_speed(trial: TrialRecord) -> Speed | None:
    """Compute a trial's speed; None if it has not reported enough.

    The first period after each start is left out, unless there is no other, because input
    pipelines fill and kernels are selected in it.
    """
    rates = _reported_rates(trial.record.training)
    reported = bool(rates)
    if not reported:
        rates = _rates_from_times(trial)
    if not rates:
        return None
    low, median, high = np.percentile(rates, [25, 50, 75])
    return Speed(float(median), float(low), float(high), len(rates), reported)


def scaling(experiments: Sequence[ExperimentRecord]) -> dict[str, list[ScalingPoint]]:
    """Return speeds by workload, in order of slots.

    Only experiments with the same model, precision and devices can be compared. The ideal scales
    linearly from the fastest experiment with the fewest slots.
    """
    measured: dict[str, list[tuple[ExperimentRecord, Speed]]] = defaultdict(list)
    for experiment in experiments:
        speed = training_speed(experiment.main_trial)
        if speed is not None:
            measured[workload(experiment)].append((experiment, speed))
    points = {}
    for name, pairs in measured.items():
        fewest = min(experiment.slots for experiment, _ in pairs)
        base = max(speed.median for experiment, speed in pairs if experiment.slots == fewest)
        points[name] = [
            ScalingPoint(each.id, each.slots, speed, base * each.slots / fewest)
            for each, speed in sorted(pairs, key=lambda pair: (pair[0].slots, pair[0].id))
        ]
    return points


def workload(experiment: ExperimentRecord) -> str:
    """Describe what an experiment's speed depends on, apart from its slots."""
    trial = experiment.main_trial
    size = trial.hparam("image_size")
    model = trial.hparam("model") + (f" at {_pixels(size)}" if size else "")
    asked = trial.hparam("amp_dtype") if trial.hparam("amp") else "float32"
    precision = (trial.metadata or {}).get("precision") or asked
    return ", ".join([model, precision, *trial.devices])


def _pixels(size: Any) -> str:
    return " x ".join(map(str, size)) + " px" if isinstance(size, list) else f"{size} px"


def _reported_rates(training: Sequence[dict[str, Any]]) -> list[float]:
    reports = [report for report in training if "images_per_second" in report]
    steady = [
        report["images_per_second"]
        for before, report in itertools.pairwise(reports)
        if before["run"] == report["run"]
    ]
    return steady or [report["images_per_second"] for report in reports]


def _rates_from_times(trial: TrialRecord) -> list[float]:
    """Compute speeds from successive reports of one run without an evaluation between them."""
    evaluated = {report["batches"] for report in trial.record.validation}
    training = trial.record.training
    return [
        trial.hparam("global_batch_size")
        * (report["batches"] - before["batches"])
        / (report["time"] - before["time"])
        for before, report in itertools.pairwise(training)
        if before["run"] == report["run"]
        and before["batches"] not in evaluated
        and report["time"] > before["time"]
    ]
