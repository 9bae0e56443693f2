"""A search's trials: how each ended, and which did best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.report.records import ENDED, ExperimentRecord, TrialRecord


class TrialOutcome(StrEnum):
    """How a trial of a search came out."""

    FINISHED = "to the end"
    STOPPED = "stopped early"  # by the searcher
    FAILED = "failed"
    CANCELED = "canceled"
    RUNNING = "not ended"


@dataclass(frozen=True)
class SearchedTrial:
    """A trial beside the others of its search.

    Attributes:
        trial: The trial.
        outcome: How it came out.
        best: The best value of the search's metric; None if the trial was never evaluated.
        best_batches: The batches after which it had that value.
        chosen: The hyperparameters that the searcher chose.
    """

    trial: TrialRecord
    outcome: TrialOutcome
    best: float | None
    best_batches: int | None
    chosen: Mapping[str, Any]


def searched_trials(experiment: ExperimentRecord) -> list[SearchedTrial]:
    """The trials of a search, the best first and those without an evaluation last."""
    names = searched_hparams(experiment)
    length = _full_length(experiment)
    trials = []
    for trial in experiment.trials:
        best = trial.best(experiment.metric, smaller_is_better=experiment.smaller_is_better)
        trials.append(
            SearchedTrial(
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


def searched_hparams(experiment: ExperimentRecord) -> list[str]:
    """The hyperparameters that the searcher chooses, in the order of the experiment's file."""
    given = experiment.config.get("hyperparameters") or {}
    return [
        name
        for name, value in given.items()
        if isinstance(value, Mapping) and value.get("type", "const") != "const"
    ]


def _outcome(experiment: ExperimentRecord, trial: TrialRecord, length: float) -> TrialOutcome:
    if trial.state not in ENDED:
        return TrialOutcome.RUNNING
    if trial.state == "ERROR":
        return TrialOutcome.FAILED
    # The searcher lets a trial that it stops end as any other: only its length tells.
    if _trained(experiment, trial) >= length:
        return TrialOutcome.FINISHED
    return TrialOutcome.STOPPED if trial.state == "COMPLETED" else TrialOutcome.CANCELED


def _full_length(experiment: ExperimentRecord) -> float:
    """What the search trains a trial for at most, in the measure of `_trained`."""
    given = experiment.searcher.get("max_time")
    if given is not None and any(_time_metric(experiment) in _last(t) for t in experiment.trials):
        return float(given)
    return max((_trained(experiment, trial) for trial in experiment.trials), default=0.0)


def _trained(experiment: ExperimentRecord, trial: TrialRecord) -> float:
    """How long a trial trained, in the searcher's own measure where its reports have that."""
    return float(_last(trial).get(_time_metric(experiment), trial.batches))


def _time_metric(experiment: ExperimentRecord) -> str:
    return str(experiment.searcher.get("time_metric", "batches"))


def _last(trial: TrialRecord) -> dict[str, Any]:
    return trial.record.validation[-1] if trial.record.validation else {}
