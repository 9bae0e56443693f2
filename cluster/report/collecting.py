"""Reads from a master what a report needs of some experiments."""

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from determined.common import api
from determined.common.api import bindings

from cluster.errors import ClusterError
from cluster.report.records import (
    AgentRecord,
    Allocation,
    ClusterRecord,
    ExperimentRecord,
    TrialRecord,
)
from reporting.records import RunRecord

# Trials whose metrics are asked for in one request: their numbers stand in its address.
_TRIALS_AT_ONCE = 100

_Reports = dict[int, list[bindings.v1MetricsReport]]


def experiment_numbers(text: str) -> list[int]:
    """The experiments of a list such as `1 2 3`, each once.

    Raises:
        ClusterError: There is none, or a word is no experiment's number.
    """
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not (word.isascii() and word.isdecimal() and int(word))]
    if wrong or not words:
        raise ClusterError(
            (f"{', '.join(map(repr, wrong))}: no experiment's number" if wrong else "no experiment")
            + '; name them by their numbers, such as EXPERIMENTS="1 2 3" (det experiment list '
            "shows them)"
        )
    return list(dict.fromkeys(int(word) for word in words))


def collect_cluster(session: api.Session, name: str) -> ClusterRecord:
    """The cluster's version and hosts."""
    agents = [
        AgentRecord(
            name=agent.id,
            slots=len(agent.slots or {}),
            devices=tuple(dict.fromkeys(map(_device, (agent.slots or {}).values()))),
            version=agent.version or "unknown",
        )
        for agent in bindings.get_GetAgents(session).agents
    ]
    return ClusterRecord(
        name=name,
        master_version=bindings.get_GetMaster(session).version,
        agents=tuple(sorted(agents, key=lambda agent: agent.name)),
    )


def collect_experiments(
    session: api.Session, cluster: ClusterRecord, numbers: Sequence[int]
) -> list[ExperimentRecord]:
    """The experiments with what their trials have reported, in the order given.

    A search's trials come with their validation metrics; training metrics come for the trial that
    is shown for an experiment, as a search can have a thousand others.

    Raises:
        ClusterError: An experiment is unknown, or has not reported what a report is about.
    """
    found: list[bindings.v1Experiment] = []
    unknown: list[int] = []
    for number in numbers:
        try:
            found.append(bindings.get_GetExperiment(session, experimentId=number).experiment)
        except api.errors.NotFoundException:
            unknown.append(number)
    if unknown:
        raise ClusterError(
            f"this cluster has no experiment {_listed(unknown)}; det experiment list shows what "
            "there is"
        )
    experiments = [_experiment(session, cluster, each) for each in found]
    silent = [each for each in experiments if not _has_losses(each)]
    if silent:
        states = ", ".join(f"{each.id} ({each.state})" for each in silent)
        raise ClusterError(
            f"no training loss has been reported yet by experiment {states}; leave out what has "
            "ended, and wait for the rest (make follow EXPERIMENT=...)"
        )
    return experiments


def _has_losses(experiment: ExperimentRecord) -> bool:
    return bool(experiment.trials) and any(
        "loss" in report for report in experiment.shown.record.training
    )


def _experiment(
    session: api.Session, cluster: ClusterRecord, found: bindings.v1Experiment
) -> ExperimentRecord:
    pages = api.read_paginated(
        lambda offset: bindings.get_GetExperimentTrials(
            session,
            experimentId=found.id,
            offset=offset,
            orderBy=bindings.v1OrderBy.ASC,
            sortBy=bindings.v1GetExperimentTrialsRequestSortBy.ID,
        )
    )
    trials = [trial for page in pages for trial in page.trials]
    evaluated = _reports(bindings.get_GetValidationMetrics, session, [trial.id for trial in trials])
    experiment = ExperimentRecord(
        id=found.id,
        name=found.name,
        state=found.state.value.removeprefix("STATE_"),
        config=found.config,
        labels=tuple(found.labels or ()),
        trials=tuple(_trial(session, trial, evaluated[trial.id]) for trial in trials),
    )
    if not trials:
        return experiment
    shown = next(trial for trial in trials if trial.id == experiment.shown.id)
    complete = _shown_trial(session, cluster, shown, evaluated[shown.id])
    return ExperimentRecord(
        **{
            **vars(experiment),
            "trials": tuple(
                complete if trial.id == complete.id else trial for trial in experiment.trials
            ),
        }
    )


def _trial(
    session: api.Session,
    trial: bindings.trialv1Trial,
    evaluated: Sequence[bindings.v1MetricsReport],
    trained: Sequence[bindings.v1MetricsReport] = (),
    **more: Any,
) -> TrialRecord:
    allocations = _allocations(session, trial)
    start = allocations[0].start if allocations else _seconds(trial.startTime)
    return TrialRecord(
        id=trial.id,
        state=trial.state.value.removeprefix("STATE_"),
        hparams=trial.hparams,
        restarts=trial.restarts,
        allocations=allocations,
        record=RunRecord(
            training=_entries(trained, "avg_metrics", start),
            validation=_entries(evaluated, "validation_metrics", start),
        ),
        metadata=trial.metadata,
        **more,
    )


def _shown_trial(
    session: api.Session,
    cluster: ClusterRecord,
    trial: bindings.trialv1Trial,
    evaluated: Sequence[bindings.v1MetricsReport],
) -> TrialRecord:
    """A trial with all that is known of it."""
    trained = _reports(bindings.get_GetTrainingMetrics, session, [trial.id])[trial.id]
    used = [
        accelerators
        for task in _tasks(trial)
        for accelerators in bindings.get_GetTaskAcceleratorData(
            session, taskId=task
        ).acceleratorData
    ]
    saved = bindings.get_GetTrialCheckpoints(session, id=trial.id, limit=1).checkpoints
    hosts = tuple(sorted({each.nodeName for each in used if each.nodeName}))
    kinds = {each.acceleratorType.upper() for each in used if each.acceleratorType}
    return _trial(
        session,
        trial,
        evaluated,
        trained,
        hosts=hosts,
        devices=_devices(trial, cluster, hosts) or tuple(sorted(kinds)),
        framework=_framework(saved[0].metadata) if saved else None,
    )


def _devices(
    trial: bindings.trialv1Trial, cluster: ClusterRecord, hosts: Sequence[str]
) -> tuple[str, ...]:
    """What a trial's slots were by name: as it said itself, or as its hosts have it now.

    Nothing if it did not say, and the hosts are gone.
    """
    said = (trial.metadata or {}).get("device")
    if said:
        return (str(said),)
    kinds = [kind for agent in cluster.agents if agent.name in hosts for kind in agent.devices]
    return tuple(dict.fromkeys(kinds))


def _framework(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The packages that Determined's trainer names in a checkpoint, by name."""
    packages = {}
    name, dash, version = str(metadata.get("framework", "")).partition("-")
    if dash:
        packages[name] = version
    if "determined_version" in metadata:
        packages["determined"] = str(metadata["determined_version"])
    return packages


def _tasks(trial: bindings.trialv1Trial) -> list[str]:
    return list(trial.taskIds or ([trial.taskId] if trial.taskId else []))


def _allocations(session: api.Session, trial: bindings.trialv1Trial) -> tuple[Allocation, ...]:
    found = [
        Allocation(
            start=_seconds(each.startTime), end=_seconds(each.endTime) if each.endTime else None
        )
        for task in _tasks(trial)
        for each in bindings.get_GetTask(session, taskId=task).task.allocations
        if each.startTime
    ]
    return tuple(sorted(found, key=lambda each: each.start))


def _reports(
    ask: Callable[..., Iterable[Any]], session: api.Session, trials: Sequence[int]
) -> _Reports:
    """All that trials have reported of a kind, by trial.

    Raises:
        ClusterError: The master breaks off.
    """
    found: _Reports = defaultdict(list)
    try:
        for first in range(0, len(trials), _TRIALS_AT_ONCE):
            for page in ask(session, trialIds=trials[first : first + _TRIALS_AT_ONCE]):
                for report in page.metrics:
                    found[report.trialId].append(report)
    except bindings.APIHttpError as error:
        raise ClusterError(f"the master broke off while it sent metrics: {error}") from error
    return found


def _entries(
    reports: Sequence[bindings.v1MetricsReport], key: str, start: float
) -> list[dict[str, Any]]:
    """Reports as a run's record has them, in the order of batches and each batch once.

    What a trial reported after a checkpoint that it later went back to is archived, and does not
    count.
    """
    kept: dict[int, dict[str, Any]] = {}
    for report in sorted(reports, key=lambda each: _seconds(each.endTime)):
        if report.archived:
            continue
        kept[report.totalBatches] = {
            **_numbers(report.metrics.get(key) or {}),
            "batches": report.totalBatches,
            "time": _seconds(report.endTime) - start,
            "run": report.trialRunId,
        }
    return [kept[batches] for batches in sorted(kept)]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers; the master writes out in words what JSON has no number for."""
    numbers = {}
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        try:
            numbers[name] = float(value)
        except ValueError:
            continue
    return numbers


def _device(slot: bindings.v1Slot) -> str:
    """What a slot is, such as the GPU's name."""
    if slot.device is None or slot.device.type is None:
        return "unknown"
    kind = slot.device.type.value.removeprefix("TYPE_")
    # Slots that stand for a share of the processor have the brand Artificial.
    return slot.device.brand if slot.device.brand and kind != "CPU" else kind


def _seconds(stamp: str) -> float:
    """A time of the master's as Unix seconds; it leaves the zone out of some, which is UTC too."""
    time = datetime.datetime.fromisoformat(stamp)
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
