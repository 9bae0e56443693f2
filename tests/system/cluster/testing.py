"""Experiments on the tests' cluster: submit, wait, look at what was reported and saved."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from determined.experimental import Determined
from determined.experimental.client import CheckpointState, Experiment, ExperimentState, Trial
from rich.console import Console

from cluster.connection import ROOT, MasterConnection
from cluster.local import LocalCluster
from cluster.overlays import config_arguments
from cluster.submit import submit
from experiments.checkpoints.detectors import allow_checkpoint_globals
from tests.experiments.launched import HPARAMS

DATA_IN_TRIALS = "/data/coco"
# In epochs of six batches, the unit of the experiments' files.
PERIODS = {"min_validation_period": {"epochs": 2}, "min_checkpoint_period": {"epochs": 1}}
# What a GPU's settings become where there is none.
SMALL: dict[str, Any] = {"pretrained_backbone": False, "amp": False, "min_loss_scale": None}


@dataclass
class TestCluster:
    """The cluster that the tests run on."""

    __test__ = False  # pytest: no test, for all its name

    local: LocalCluster
    port: int
    data: Path
    console: Console
    connection: MasterConnection = field(init=False)
    master: Determined = field(init=False)
    # Fault -> seconds until the trial's next report; None if it had nothing left to report.
    recoveries: dict[str, float | None] = field(default_factory=dict)
    _shape: tuple[int, int] | None = None

    def shape(self, *, agents: int, slots: int) -> None:
        """Give the cluster so many agents of so many slots each."""
        if self._shape == (agents, slots):
            return
        if self._shape is not None:
            self._stop()
        self.connection = self.local.up(
            self.console, data=self.data, agents=agents, slots=slots, port=self.port
        )
        self.master = self.connection.login()
        self._shape = (agents, slots)

    def restart(self) -> None:
        """Stop the cluster as `make local-down` does, see that nothing runs, and start it again."""
        assert self._shape is not None
        agents, slots = self._shape
        self._stop()
        self.shape(agents=agents, slots=slots)

    def _stop(self) -> None:
        # Not the agents alone: a checkpoint collection that the master starts meanwhile, some
        # time after its experiment's end, would leave a container that nobody removes.
        self.local.down(self.console)
        self._shape = None
        assert self.task_containers() == []

    @property
    def session(self) -> Any:
        """The login, for calls that Determined's SDK has no method for."""
        return self.master._session

    def container(self, service: str, number: int = 1) -> str:
        """The name of a service's container."""
        return f"{self.local.project}-{service}-{number}"

    def docker(self, *arguments: str) -> str:
        """Run a docker command."""
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    def submit(
        self, config: str = "const", /, *, without: tuple[str, ...] = (), **changes: Any
    ) -> Experiment:
        """Submit one of experiments/'s files, shrunk as the tests of resume shrink theirs.

        Args:
            config: The file's name.
            without: Hyperparameters of those that are left as the file has them.
            changes: More changes to the file; those of mappings are merged.
        """
        overlay: dict[str, Any] = {
            "data": {"version": self.connection.versions[str(self.data)]},
            "bind_mounts": [
                {
                    "host_path": str(self.data),
                    "container_path": DATA_IN_TRIALS,
                    "read_only": True,
                }
            ],
            # One thread: two that wait for each other crawl on a machine that is busy.
            "environment": {"environment_variables": ["OMP_NUM_THREADS=1"]},
            "hyperparameters": {**SMALL, **HPARAMS},
            **PERIODS,
            "scheduling_unit": 1,
        }
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(overlay.get(key), dict):
                overlay[key] = {**overlay[key], **value}
            else:
                overlay[key] = value
        file = ROOT / "experiments" / f"{config}.yaml"
        for name in without:
            del overlay["hyperparameters"][name]
        number = submit(self.connection, file, config_arguments(overlay))
        return self.master.get_experiment(number)

    def wait(self, experiment: Experiment, *, seconds: float = 900) -> None:
        """Wait until an experiment has COMPLETED; fail with its logs if it ends otherwise."""

        def ended() -> bool:
            experiment.reload()
            return experiment.state in (
                ExperimentState.COMPLETED,
                ExperimentState.CANCELED,
                ExperimentState.ERROR,
            )

        self._wait_until(ended, seconds)
        assert experiment.state is ExperimentState.COMPLETED, self.logs(experiment)[-6000:]

    def wait_for_batch(self, trial: Trial, batch: int, *, seconds: float = 600) -> None:
        """Wait until a trial has reported a batch."""

        def there() -> bool:
            assert trial.get_experiment().state is not ExperimentState.ERROR, self.logs_of(trial)
            return any(entry["batches"] >= batch for entry in self.reports(trial, "training"))

        self._wait_until(there, seconds)

    def wait_for_state(self, experiment: Experiment, state: ExperimentState) -> None:
        """Wait until an experiment is in a state."""

        def reached() -> bool:
            experiment.reload()
            return experiment.state is state

        self._wait_until(reached, 120)

    def _wait_until(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except Exception:
                # The master may be away, by a test's own doing.
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.5)

    def trial(self, experiment: Experiment) -> Trial:
        """An experiment's first trial, once there is one."""
        return experiment.await_first_trial()

    def logs_of(self, trial: Trial) -> str:
        """Everything that a trial has printed."""
        return "".join(trial.iter_logs())

    def logs(self, experiment: Experiment) -> str:
        """What an experiment's trials have printed."""
        return "".join(self.logs_of(trial) for trial in experiment.iter_trials())

    def reports(self, trial: Trial, group: str) -> list[dict[str, Any]]:
        """What a trial has reported to the master, without what measures time."""
        return [
            {
                "batches": entry.steps_completed,
                **{k: v for k, v in entry.metrics.items() if "per_second" not in k},
            }
            for entry in trial.iter_metrics(group)
        ]

    def recovered(self, trial: Trial, fault: str, since: float) -> None:
        """Note how long after a fault's end a trial's first report came that counts.

        Args:
            trial: One that has ended.
            fault: What happened to it.
            since: When what had failed was there again, in seconds of the epoch.
        """
        times = [entry.end_time.timestamp() for entry in trial.iter_metrics("training")]
        after = [each - since for each in times if each > since]
        self.recoveries[fault] = min(after, default=None)

    def determined(self, *arguments: str) -> str:
        """Run a command of Determined's own command line."""
        return subprocess.run(
            [sys.executable, "-m", "determined.cli", *arguments],
            env={**os.environ, **self.connection.environment()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def checkpoints(self, trial: Trial, storage: Path | None = None) -> list[tuple[int, Path]]:
        """Batch and folder of a trial's checkpoints that are there, oldest first."""
        storage = storage or self.local.state / "checkpoints"
        found = trial.list_checkpoints()
        folders = [
            (int(each.metadata["steps_completed"]), storage / each.uuid)
            for each in found
            if each.metadata and each.state is CheckpointState.COMPLETED
        ]
        return sorted(folders)

    def final_state(self, trial: Trial, storage: Path | None = None) -> dict[str, Any]:
        """Model, optimizer, average and place of a trial's last checkpoint."""
        batches, folder = self.checkpoints(trial, storage)[-1]
        allow_checkpoint_globals()
        state = torch.load(folder / "state_dict.pth", weights_only=True)
        return {
            "batches": batches,
            "model": state["models_state_dict"],
            "optimizer": state["optimizers_state_dict"],
            "position": state["callbacks"]["position"],
        }

    def wait_for_no_tasks(self) -> None:
        """Wait until no trial's container runs."""
        self._wait_until(lambda: not self.task_containers(), 60)

    def task_containers(self) -> list[str]:
        """Trial containers that run on this engine for this cluster's agents."""
        label = "label=ai.determined.container.id"
        rows = self.docker("ps", "--all", "--filter", label, "--quiet")
        return rows.split()
