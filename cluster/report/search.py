"""A search's trials: how each one ended, and their ranking."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.report.records import ENDED, ExperimentRecord, TrialRecord


class TrialOutcome(StrEnum):
    """How a trial of a search ended."""

    FINISHED = "to the end"
    STOPPED = "stopped early"  # by the searcher
    FAILED = "failed"
    CANCELED = "canceled"
    RUNNING = "not ended"


@dataclass(frozen=True)
class SearchTrial:
    """A trial in the ranking of its search.

    Attributes:
        trial: The trial.
        outcome: How it ended.
        best: The best value of the search's metric; None if the trial was never evaluated.
        best_batches: The number of batches after which it had that value.
        chosen: The hyperparameters that the searcher chose for it.
    """

    trial: TrialRecord
    outcome: TrialOutcome
    best: float | None
    best_batches: int | None
    chosen: Mapping[str, Any]


def rank_trials(experiment: ExperimentRecord) -> list[SearchTrial]:
    """Return the trials of a search, best first and those without an evaluation last."""
    names = searched_hparam_names(experiment)
    length = _full_length(experiment)
    trials = []
    for trial in experiment.trials:
        best = trial.best(experiment.metric, smaller_is_better=experiment.smaller_is_better)
        trials.append(
            SearchTrial(
                trial=trial,
                outcome=_outcome(experiment, trial, length),
                best=best[experiment.metric] if best else None,
                best_batches=best["batches"] if best else None,
                chosen={name: trial.hparams.get(name) for name in names},
            )
        )
    sign = 1 if experiment.smaller_is_better else -1
    return sorted(
        trials,
        key=lambda each: (math.inf if each.best is None else sign * each.best, each.trial.id),
    )


def searched_hparam_names(experiment: ExperimentRecord) -> list[str]:
    """Return the hyperparameters that the searcher chooses, in the configuration's order."""
    hparams = experiment.config.get("hyperparameters") or {}
    return [
        name
        for name, value in hparams.items()
        if isinstance(value, Mapping) and value.get("type", "const") != "const"
    ]


def _outcome(experiment: ExperimentRecord, trial: TrialRecord, length: float) -> TrialOutcome:
    if trial.state not in ENDED:
        return TrialOutcome.RUNNING
    if trial.state == "ERROR":
        return TrialOutcome.FAILED
    # A trial that the searcher stopped is COMPLETED too; only its length tells them apart.
    if _trained(experiment, trial) >= length:
        return TrialOutcome.FINISHED
    return TrialOutcome.STOPPED if trial.state == "COMPLETED" else TrialOutcome.CANCELED


def _full_length(experiment: ExperimentRecord) -> float:
    """Return the maximum length of a trial, in the unit of `_trained`."""
    max_time = experiment.searcher.get("max_time")
    reported = any(_time_metric(experiment) in _last(trial) for trial in experiment.trials)
    if max_time is not None and reported:
        return float(max_time)
    return max((_trained(experiment, trial) for trial in experiment.trials), default=0.0)


def _trained(experiment: ExperimentRecord, trial: TrialRecord) -> float:
    """Return how long a trial trained, in the searcher's time metric if reported, else batches."""
    return float(_last(trial).get(_time_metric(experiment), trial.batches))


def _time_metric(experiment: ExperimentRecord) -> str:
    return str(experiment.searcher.get("time_metric", "batches"))


def _last(trial: TrialRecord) -> dict[str, Any]:
    return trial.record.validation[-1] if trial.record.validation else {}
