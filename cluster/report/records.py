"""The experiments, trials and agents of a report, as plain values."""

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
    """A period in which a trial held slots; a restart or a resume begins another one."""

    start: float  # Unix seconds
    end: float | None  # None if it still holds them


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        id: Its number.
        state: Its state in Determined, such as COMPLETED.
        hparams: Its hyperparameters, without those that the experiment's file omits.
        restarts: How often it was restarted after a failure.
        allocations: When it held slots, in chronological order; empty if it never did.
        record: Its reports. `time` is when the master received a report, in seconds since the
            trial first held slots; `run` is incremented at each start of the trial.
        hosts: The agents that it ran on.
        devices: Its devices, without duplicates.
        framework: Package versions in its checkpoints' metadata.
        metadata: What the trial recorded about its environment.
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
        """Return a hyperparameter's value, or its default if the trial does not set it."""
        return self.hparams.get(name, getattr(HParams(), name))

    @property
    def batches(self) -> int:
        """Batches trained, according to its reports."""
        reports = [*self.record.training, *self.record.validation]
        return max((report["batches"] for report in reports), default=0)

    @property
    def seconds(self) -> float:
        """Time from when it first held slots to its last report."""
        reports = [*self.record.training, *self.record.validation]
        return max((report["time"] for report in reports), default=0.0)

    @property
    def seconds_without_slots(self) -> float:
        """Time between allocations: pauses, and waiting after a failure."""
        return sum(
            max(0.0, after.start - before.end)
            for before, after in itertools.pairwise(self.allocations)
            if before.end is not None
        )

    @property
    def seconds_evaluating(self) -> float:
        """Time between reports of training and of validation after the same batch."""
        trained = {
            (report["run"], report["batches"]): report["time"] for report in self.record.training
        }
        pairs = [
            (report["time"], trained.get((report["run"], report["batches"])))
            for report in self.record.validation
        ]
        return sum(time - before for time, before in pairs if before is not None)

    def best(self, metric: str, *, smaller_is_better: bool) -> dict[str, Any] | None:
        """Return the validation report with the best finite value of a metric, if there is one."""
        reports = [
            each for each in self.record.validation if math.isfinite(each.get(metric, math.nan))
        ]
        choose = min if smaller_is_better else max
        return choose(reports, key=lambda each: each[metric]) if reports else None


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment with its trials, in order of creation."""

    id: int
    name: str
    state: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    trials: tuple[TrialRecord, ...]

    @property
    def searcher(self) -> Mapping[str, Any]:
        """The configuration's searcher section."""
        return self.config.get("searcher") or {}

    @property
    def is_search(self) -> bool:
        """Whether it is a hyperparameter search, rather than a single trial."""
        return self.searcher.get("name", "single") != "single"

    @property
    def metric(self) -> str:
        """The validation metric that ranks trials and checkpoints."""
        return str(self.searcher.get("metric", "AP"))

    @property
    def smaller_is_better(self) -> bool:
        """Whether smaller values of `metric` are better."""
        return bool(self.searcher.get("smaller_is_better", True))

    @property
    def slots(self) -> int:
        """Slots per trial, which is its number of ranks."""
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
        """The task image, or one per device type if they differ."""
        images = (self.config.get("environment") or {}).get("image")
        if not isinstance(images, Mapping):
            return images
        if len(set(images.values())) == 1:
            return str(next(iter(images.values())))
        return ", ".join(f"{kind}: {image}" for kind, image in images.items())

    @property
    def data_version(self) -> str | None:
        """The data set's version that the configuration requires, or else the one that was used."""
        version = (self.config.get("data") or {}).get("version")
        if version is None and self.trials:
            version = (self.main_trial.metadata or {}).get("data_version")
        return None if version is None else str(version)

    @property
    def commit(self) -> str | None:
        """The commit that was submitted, from the experiment's `commit:` label."""
        labels = [label for label in self.labels if label.startswith("commit:")]
        return labels[0].removeprefix("commit:") if labels else None

    @property
    def main_trial(self) -> TrialRecord:
        """The trial that represents the experiment: the only one, or a search's best."""
        reports = [
            (trial.best(self.metric, smaller_is_better=self.smaller_is_better), trial)
            for trial in self.trials
        ]
        scores = [(report[self.metric], trial) for report, trial in reports if report is not None]
        if not scores:
            return self.trials[0]
        choose = min if self.smaller_is_better else max
        return choose(scores, key=lambda score: score[0])[1]


@dataclass(frozen=True)
class AgentRecord:
    """An agent of the cluster."""

    name: str
    slots: int
    devices: tuple[str, ...]  # of its slots, without duplicates
    version: str


@dataclass(frozen=True)
class ClusterRecord:
    """The cluster at the time of the report."""

    name: str
    master_version: str
    agents: tuple[AgentRecord, ...]
