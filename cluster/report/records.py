"""What a master knows of experiments, as plain values: all that a report is made from."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.settings.hparams import HParams
from reporting.records import RunRecord

ENDED = ("COMPLETED", "CANCELED", "ERROR")


@dataclass(frozen=True)
class Allocation:
    """One time that a trial held slots; each restart, and each resume after a pause, is another."""

    start: float  # Unix seconds
    end: float | None  # None: it holds them still


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        id: Its number on the cluster.
        state: Determined's name for its state, such as COMPLETED.
        hparams: The hyperparameters that the searcher gave it; those that the experiment's file
            leaves out are not there.
        restarts: How often it failed and was started again.
        allocations: When it held slots, in the order of time; none if it never did.
        record: Its reports. `time` is in seconds since it first held slots, by the master's clock
            when it took the report in; `run` counts up with each start of the trial.
        hosts: The agents that it ran on.
        devices: What its slots were, each kind once.
        framework: What its checkpoints say that they were made with, by package.
        metadata: What the trial itself wrote down of its surroundings.
    """

    id: int
    state: str
    hparams: Mapping[str, Any]
    restarts: int
    allocations: tuple[Allocation, ...]
    record: RunRecord
    hosts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    framework: Mapping[str, str] | None = None
    metadata: Mapping[str, Any] | None = None

    def hparam(self, name: str) -> Any:
        """A hyperparameter as it was in force: the trial's own value, or the default."""
        return self.hparams.get(name, getattr(HParams(), name))

    @property
    def batches(self) -> int:
        """How many batches it trained, as far as it has reported."""
        reports = [*self.record.training, *self.record.validation]
        return max((report["batches"] for report in reports), default=0)

    @property
    def seconds(self) -> float:
        """From when it first held slots to its last report."""
        reports = [*self.record.training, *self.record.validation]
        return max((report["time"] for report in reports), default=0.0)

    @property
    def seconds_without_slots(self) -> float:
        """Of `seconds`, what lay between two allocations: pauses, and waiting after a failure."""
        return sum(
            max(0.0, after.start - before.end)
            for before, after in itertools.pairwise(self.allocations)
            if before.end is not None
        )

    @property
    def seconds_evaluating(self) -> float:
        """Of `seconds`, what lay between the end of training batches and the metrics on them."""
        trained = {
            (report["run"], report["batches"]): report["time"] for report in self.record.training
        }
        places = [
            (report["time"], trained.get((report["run"], report["batches"])))
            for report in self.record.validation
        ]
        return sum(time - before for time, before in places if before is not None)

    def best(self, metric: str, *, smaller_is_better: bool) -> dict[str, Any] | None:
        """The validation report with the best value of a metric; None without such a report."""
        reports = [
            each for each in self.record.validation if math.isfinite(each.get(metric, math.nan))
        ]
        choose = min if smaller_is_better else max
        return choose(reports, key=lambda each: each[metric]) if reports else None


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment with its trials, in the order in which they were made."""

    id: int
    name: str
    state: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    trials: tuple[TrialRecord, ...]

    @property
    def searcher(self) -> Mapping[str, Any]:
        """How hyperparameters are chosen, as the configuration has it."""
        return self.config.get("searcher") or {}

    @property
    def is_search(self) -> bool:
        """Whether trials are compared; else there is one."""
        return self.searcher.get("name", "single") != "single"

    @property
    def metric(self) -> str:
        """The validation metric that decides which trial and checkpoint is best."""
        return str(self.searcher.get("metric", "AP"))

    @property
    def smaller_is_better(self) -> bool:
        """Whether a small value of `metric` is a good one."""
        return bool(self.searcher.get("smaller_is_better", True))

    @property
    def slots(self) -> int:
        """Slots of a trial: ranks that train together."""
        return int((self.config.get("resources") or {}).get("slots_per_trial", 1))

    @property
    def launcher(self) -> str:
        """What starts the ranks of a trial."""
        entrypoint = str(self.config.get("entrypoint", ""))
        if "launch.horovod" in entrypoint:
            return "Horovod"
        return "torch.distributed" if "launch.torch_distributed" in entrypoint else "one process"

    @property
    def image(self) -> str | None:
        """The image that trials run in, or those for each kind of device where they differ."""
        images = (self.config.get("environment") or {}).get("image")
        if not isinstance(images, Mapping):
            return images
        if len(set(images.values())) == 1:
            return str(next(iter(images.values())))
        return ", ".join(f"{kind}: {image}" for kind, image in images.items())

    @property
    def data_version(self) -> str | None:
        """The data set's version: what it had to be on every host, or what the trial found."""
        version = (self.config.get("data") or {}).get("version")
        if version is None and self.trials:
            version = (self.shown.metadata or {}).get("data_version")
        return None if version is None else str(version)

    @property
    def commit(self) -> str | None:
        """The commit that was submitted, from the label that submitting puts on an experiment."""
        marked = [label for label in self.labels if label.startswith("commit:")]
        return marked[0].removeprefix("commit:") if marked else None

    @property
    def shown(self) -> TrialRecord:
        """The trial whose curves stand for the experiment: the only one, or a search's best."""
        reports = [
            (trial.best(self.metric, smaller_is_better=self.smaller_is_better), trial)
            for trial in self.trials
        ]
        rated = [(report[self.metric], trial) for report, trial in reports if report is not None]
        if not rated:
            return self.trials[0]
        choose = min if self.smaller_is_better else max
        return choose(rated, key=lambda each: each[0])[1]


@dataclass(frozen=True)
class AgentRecord:
    """A host of the cluster."""

    name: str
    slots: int
    devices: tuple[str, ...]  # what its slots are, each kind once
    version: str


@dataclass(frozen=True)
class ClusterRecord:
    """The cluster as it is when the report is made."""

    name: str
    master_version: str
    agents: tuple[AgentRecord, ...]
