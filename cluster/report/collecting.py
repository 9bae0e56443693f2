"""Reads what a report needs from the master."""

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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

# A request's URL lists the trial ids, so its length limits how many fit.
_TRIALS_PER_REQUEST = 100

_Reports = dict[int, list[bindings.v1MetricsReport]]


def experiment_numbers(text: str) -> list[int]:
    """Parse a list such as `1 2 3`, without duplicates.

    Raises:
        ClusterError: The list is empty, or a word is not an experiment number.
    """
    words = text.replace(",", " ").split()
    invalid = [word for word in words if not (word.isascii() and word.isdecimal() and int(word))]
    if invalid or not words:
        problem = (
            f"not an experiment number: {', '.join(map(repr, invalid))}"
            if invalid
            else "no experiments given"
        )
        raise ClusterError(
            f'{problem}; list their numbers, as in EXPERIMENTS="1 2 3" (to see them: det '
            "experiment list)"
        )
    return list(dict.fromkeys(int(word) for word in words))


def collect_cluster(session: api.Session, name: str) -> ClusterRecord:
    """Read the cluster's version and agents."""
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
    """Read experiments and their trials' metrics, in the order given.

    Validation metrics are read for all trials; training metrics only for each experiment's main
    trial, since a search can have a thousand trials.

    Raises:
        ClusterError: An experiment does not exist, or has not reported a training loss.
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
            f"this cluster has no experiment {', '.join(map(str, unknown))}; to list what it has: "
            "det experiment list"
        )
    experiments = [_experiment(session, cluster, each) for each in found]
    without_losses = [each for each in experiments if not _has_losses(each)]
    if without_losses:
        states = ", ".join(f"{each.id} ({each.state})" for each in without_losses)
        raise ClusterError(
            f"no training loss has been reported yet by experiment {states}; wait for those that "
            "are running (make follow EXPERIMENT=...) and omit the others"
        )
    return experiments


def _has_losses(experiment: ExperimentRecord) -> bool:
    return bool(experiment.trials) and any(
        "loss" in report for report in experiment.main_trial.record.training
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
    validation = _reports(
        bindings.get_GetValidationMetrics, session, [trial.id for trial in trials]
    )
    experiment = ExperimentRecord(
        id=found.id,
        name=found.name,
        state=found.state.value.removeprefix("STATE_"),
        config=found.config,
        labels=tuple(found.labels or ()),
        trials=tuple(_trial(session, trial, validation[trial.id]) for trial in trials),
    )
    if not trials:
        return experiment
    main = next(trial for trial in trials if trial.id == experiment.main_trial.id)
    main_record = _main_trial(session, cluster, main, validation[main.id])
    return replace(
        experiment,
        trials=tuple(
            main_record if trial.id == main_record.id else trial for trial in experiment.trials
        ),
    )


def _trial(
    session: api.Session,
    trial: bindings.trialv1Trial,
    validation: Sequence[bindings.v1MetricsReport],
    training: Sequence[bindings.v1MetricsReport] = (),
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
            training=_entries(training, "avg_metrics", start),
            validation=_entries(validation, "validation_metrics", start),
        ),
        metadata=trial.metadata,
        **more,
    )


def _main_trial(
    session: api.Session,
    cluster: ClusterRecord,
    trial: bindings.trialv1Trial,
    validation: Sequence[bindings.v1MetricsReport],
) -> TrialRecord:
    """Read a trial with its training metrics, hosts, devices and package versions."""
    training = _reports(bindings.get_GetTrainingMetrics, session, [trial.id])[trial.id]
    used = [
        accelerators
        for task in _tasks(trial)
        for accelerators in bindings.get_GetTaskAcceleratorData(
            session, taskId=task
        ).acceleratorData
    ]
    checkpoints = bindings.get_GetTrialCheckpoints(session, id=trial.id, limit=1).checkpoints
    hosts = tuple(sorted({each.nodeName for each in used if each.nodeName}))
    kinds = {each.acceleratorType.upper() for each in used if each.acceleratorType}
    return _trial(
        session,
        trial,
        validation,
        training,
        hosts=hosts,
        devices=_devices(trial, cluster, hosts) or tuple(sorted(kinds)),
        framework=_framework(checkpoints[0].metadata) if checkpoints else None,
    )


def _devices(
    trial: bindings.trialv1Trial, cluster: ClusterRecord, hosts: Sequence[str]
) -> tuple[str, ...]:
    """Return the names of a trial's devices: as it recorded them, or else as its hosts have now.

    Empty if it recorded none and its hosts have left the cluster.
    """
    recorded = (trial.metadata or {}).get("device")
    if recorded:
        return (str(recorded),)
    kinds = [kind for agent in cluster.agents if agent.name in hosts for kind in agent.devices]
    return tuple(dict.fromkeys(kinds))


def _framework(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the package versions that Determined's trainer saved in a checkpoint's metadata."""
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
    request: Callable[..., Iterable[Any]], session: api.Session, trials: Sequence[int]
) -> _Reports:
    """Read one kind of reports, by trial.

    Raises:
        ClusterError: The stream of metrics broke off.
    """
    found: _Reports = defaultdict(list)
    try:
        for first in range(0, len(trials), _TRIALS_PER_REQUEST):
            for page in request(session, trialIds=trials[first : first + _TRIALS_PER_REQUEST]):
                for report in page.metrics:
                    found[report.trialId].append(report)
    except bindings.APIHttpError as error:
        raise ClusterError(
            f"the master stopped sending metrics before the end; try again ({error})"
        ) from error
    return found


def _entries(
    reports: Sequence[bindings.v1MetricsReport], key: str, start: float
) -> list[dict[str, Any]]:
    """Convert reports into the form of RunRecord, in order of batches and without duplicates.

    Archived reports, those after a checkpoint that the trial later restarted from, are left out.
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
    """Return the numeric metrics; NaN and infinities arrive as strings, for JSON lacks them."""
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
    """Return a slot's device, such as the GPU's name."""
    if slot.device is None or slot.device.type is None:
        return "unknown"
    kind = slot.device.type.value.removeprefix("TYPE_")
    # CPU slots have the brand "Artificial".
    return slot.device.brand if slot.device.brand and kind != "CPU" else kind


def _seconds(stamp: str) -> float:
    """Parse a timestamp of the master as Unix seconds; without a time zone, it is in UTC."""
    time = datetime.datetime.fromisoformat(stamp)
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
