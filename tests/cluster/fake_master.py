"""A fake master that answers from plain data, in Determined 0.38.1's JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from determined.common.api import errors

EPOCH = 1_790_000_000.0
"""Unix time of the start; the times below are seconds after it."""


def stamp(seconds: float) -> str:
    """Format a time as the master does."""
    return f"{naive_stamp(seconds)}Z"


def naive_stamp(seconds: float) -> str:
    """Format a time as the master does for allocations: UTC without a time zone."""
    return datetime.fromtimestamp(EPOCH + seconds, UTC).replace(tzinfo=None).isoformat()


@dataclass
class Response:
    """Stands in for `requests.Response`."""

    content: list[Any]
    status_code: int = 200
    reason: str = "OK"

    def json(self) -> Any:
        return self.content[0]

    def iter_lines(self, chunk_size: int) -> Iterator[str]:
        return (json.dumps({"result": each}) for each in self.content)


@dataclass
class Trial:
    """A trial; each report is (run, batches, seconds, metrics)."""

    id: int
    hparams: Mapping[str, Any] = field(default_factory=dict)
    state: str = "COMPLETED"
    restarts: int = 0
    allocations: Sequence[tuple[float, float | None]] = ((0.0, 100.0),)
    training: Sequence[tuple[int, int, float, Mapping[str, Any]]] = ()
    validation: Sequence[tuple[int, int, float, Mapping[str, Any]]] = ()
    archived: Sequence[tuple[int, int, float, Mapping[str, Any]]] = ()  # training
    metadata: Mapping[str, Any] | None = None


@dataclass
class Experiment:
    """An experiment with its trials."""

    id: int
    config: Mapping[str, Any]
    trials: Sequence[Trial]
    labels: Sequence[str] = ()
    state: str = "COMPLETED"


@dataclass
class FakeMaster:
    """Stands in for the session that Determined's bindings send requests with."""

    experiments: Sequence[Experiment]
    host: str = "node-1"
    requests: list[str] = field(default_factory=list)

    def _do_request(self, *, path: str, params: Any, **_: Any) -> Response:
        self.requests.append(path)
        match path.removeprefix("/api/v1/").split("/"):
            case ["master"]:
                return Response([_MASTER])
            case ["agents"]:
                return Response([{"agents": [_AGENT]}])
            case ["experiments", number]:
                return Response([{"experiment": _experiment(self._find(int(number)))}])
            case ["experiments", number, "trials"]:
                return self._trials(int(number), params)
            case ["trials", "metrics", kind]:
                return self._metrics(kind.removesuffix("_metrics"), params["trialIds"])
            case ["trials", number, "checkpoints"]:
                return Response([_checkpoints(int(number))])
            case ["tasks", task]:
                return Response([{"task": _task(self._trial_of(task))}])
            case ["tasks", _, "acceleratorData"]:
                return Response(
                    [{"acceleratorData": [{"nodeName": self.host, "acceleratorType": "cuda"}]}]
                )
        raise AssertionError(f"the fake master has no answer for {path}")

    def _find(self, number: int) -> Experiment:
        for experiment in self.experiments:
            if experiment.id == number:
                return experiment
        raise errors.NotFoundException(f"experiment {number} not found")

    def _trial_of(self, task: str) -> Trial:
        number = int(task.removeprefix("task-"))
        return next(t for each in self.experiments for t in each.trials if t.id == number)

    def _trials(self, number: int, params: Mapping[str, Any]) -> Response:
        """Return pages of two trials, so that paging is tested."""
        trials = self._find(number).trials
        offset = params["offset"] or 0
        page = trials[offset : offset + 2]
        pagination = {
            "offset": offset,
            "startIndex": offset,
            "endIndex": offset + len(page),
            "total": len(trials),
        }
        return Response(
            [{"trials": [_trial(number, each) for each in page], "pagination": pagination}]
        )

    def _metrics(self, kind: str, trials: Sequence[int]) -> Response:
        key = {"training": "avg_metrics", "validation": "validation_metrics"}[kind]
        reports: list[dict[str, Any]] = []
        for number in trials:
            trial = self._trial_of(f"task-{number}")
            archived = trial.archived if kind == "training" else ()
            for report in [*archived, *getattr(trial, kind)]:
                run, batches, seconds, metrics = report
                reports.append(
                    {
                        "trialId": number,
                        "trialRunId": run,
                        "totalBatches": batches,
                        "endTime": stamp(seconds),
                        "metrics": {key: dict(metrics)},
                        "archived": report in archived,
                        "group": kind,
                        "id": len(reports),
                    }
                )
        return Response([{"metrics": [each]} for each in reports])


_MASTER = {
    "version": "0.38.1",
    "clusterId": "c",
    "clusterName": "",
    "masterId": "m",
    "hasCustomLogo": False,
    "strictJobQueueControl": False,
}
_AGENT = {
    "id": "node-1",
    "version": "0.38.1",
    "slotStats": {"brandStats": {}, "typeStats": {}},
    "slots": {
        f"{number}": {"id": f"{number}", "device": {"brand": "Example GPU", "type": "TYPE_CUDA"}}
        for number in range(4)
    },
}


def _experiment(experiment: Experiment) -> dict[str, Any]:
    return {
        "id": experiment.id,
        "name": experiment.config["name"],
        "state": f"STATE_{experiment.state}",
        "config": experiment.config,
        "labels": list(experiment.labels),
        "startTime": stamp(0),
        "archived": False,
        "jobId": "j",
        "numTrials": len(experiment.trials),
        "originalConfig": "",
        "projectId": 1,
        "projectOwnerId": 1,
        "searcherType": experiment.config["searcher"]["name"],
        "username": "admin",
    }


def _trial(experiment: int, trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "experimentId": experiment,
        "hparams": trial.hparams,
        "restarts": trial.restarts,
        "startTime": stamp(-1000),
        "state": f"STATE_{trial.state}",
        "totalBatchesProcessed": 0,
        "taskIds": [f"task-{trial.id}"],
        "metadata": trial.metadata,
    }


def _task(trial: Trial) -> dict[str, Any]:
    return {
        "taskId": f"task-{trial.id}",
        "taskType": "TASK_TYPE_TRIAL",
        "startTime": stamp(-1000),
        "allocations": [
            {
                "allocationId": f"task-{trial.id}.{number}",
                "taskId": f"task-{trial.id}",
                "state": "STATE_TERMINATED",
                "slots": 1,
                "startTime": naive_stamp(start),
                **({} if end is None else {"endTime": naive_stamp(end)}),
            }
            for number, (start, end) in enumerate(trial.allocations)
        ],
    }


def _checkpoints(trial: int) -> dict[str, Any]:
    checkpoint = {
        "uuid": "00000000-0000-4000-8000-000000000000",
        "metadata": {"framework": "torch-2.14.1+cu130", "determined_version": "0.38.1"},
        "resources": {},
        "state": "STATE_COMPLETED",
        "training": {"trialId": trial},
        "storageId": 1,
    }
    return {"checkpoints": [checkpoint], "pagination": {}}
