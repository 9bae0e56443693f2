"""The cluster that tests run experiments on."""

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
from experiments.runtime.determined_internals import session_of
from tests.experiments.launched import HPARAMS

DATA_IN_TRIALS = "/data/coco"
# In epochs of six batches.
PERIODS = {"min_validation_period": {"epochs": 2}, "min_checkpoint_period": {"epochs": 1}}
# Replacements for settings that need a GPU or internet access.
WITHOUT_GPU: dict[str, Any] = {"pretrained_backbone": False, "amp": False, "min_loss_scale": None}


@dataclass
class RealCluster:
    """A running cluster, with methods to submit experiments and to inspect their results."""

    local: LocalCluster
    port: int
    data: Path
    console: Console
    connection: MasterConnection = field(init=False)
    master: Determined = field(init=False)
    # Fault -> seconds until the trial's next report; None if the trial had already ended.
    recoveries: dict[str, float | None] = field(default_factory=dict)
    _size: tuple[int, int] | None = None

    def resize(self, *, agents: int, slots: int) -> None:
        """Restart the cluster with this many agents and slots per agent, unless it has them."""
        if self._size == (agents, slots):
            return
        if self._size is not None:
            self.stop()
        self.connection = self.local.up(
            self.console,
            data=self.data,
            agents=agents,
            slots=slots,
            port=self.port,
            gpus="none",
        )
        self.master = self.connection.login()
        self._size = (agents, slots)

    def restart(self) -> None:
        """Stop the cluster as `make local-down` does, and start it again."""
        assert self._size is not None
        agents, slots = self._size
        self.stop()
        self.resize(agents=agents, slots=slots)

    def stop(self) -> None:
        """Stop the cluster as `make local-down` does."""
        # Stop the master too: it may start a checkpoint garbage collection some time after an
        # experiment's end, whose container nobody would remove.
        self.local.down(self.console)
        self._size = None
        assert self.task_containers() == []

    @property
    def session(self) -> Any:
        """The session, for API calls that Determined's SDK has no method for."""
        return session_of(self.master)

    def container(self, service: str, number: int = 1) -> str:
        """Return the name of a service's container."""
        return f"{self.local.project}-{service}-{number}"

    def docker(self, *arguments: str) -> str:
        """Run a docker command."""
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    def submit(
        self, config: str = "const", /, *, without: tuple[str, ...] = (), **changes: Any
    ) -> Experiment:
        """Submit one of the files in experiments/, with the small settings of the resume tests.

        Args:
            config: The file's name without its suffix.
            without: Names of hyperparameters to leave as they are in the file.
            changes: More changes to the file; mappings are merged.
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
            # Threads that spin while they wait for each other are very slow on a busy machine.
            "environment": {"environment_variables": ["OMP_NUM_THREADS=1"]},
            "hyperparameters": {**WITHOUT_GPU, **HPARAMS},
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
        """Wait until an experiment has COMPLETED; fail with its logs if it ends any other way."""

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
        """Wait until a trial has reported a batch number or a later one."""

        def reported() -> bool:
            assert trial.get_experiment().state is not ExperimentState.ERROR, self.trial_logs(trial)
            return any(entry["batches"] >= batch for entry in self.reports(trial, "training"))

        self._wait_until(reported, seconds)

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
                # A test may have killed the master.
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.5)

    def trial(self, experiment: Experiment) -> Trial:
        """Wait for an experiment's first trial, and return it."""
        return experiment.await_first_trial()

    def trial_logs(self, trial: Trial) -> str:
        """Return a trial's logs."""
        return "".join(trial.iter_logs())

    def logs(self, experiment: Experiment) -> str:
        """Return the logs of an experiment's trials."""
        return "".join(self.trial_logs(trial) for trial in experiment.iter_trials())

    def reports(self, trial: Trial, group: str) -> list[dict[str, Any]]:
        """Return the metrics that a trial has reported, without speeds."""
        return [
            {
                "batches": entry.steps_completed,
                **{k: v for k, v in entry.metrics.items() if "per_second" not in k},
            }
            for entry in trial.iter_metrics(group)
        ]

    def record_recovery(self, trial: Trial, fault: str, since: float) -> None:
        """Record how long after the end of a fault a trial reported again.

        Args:
            trial: A trial that has ended.
            fault: Description of the fault.
            since: When the fault ended, in Unix seconds.
        """
        times = [entry.end_time.timestamp() for entry in trial.iter_metrics("training")]
        after = [each - since for each in times if each > since]
        self.recoveries[fault] = min(after, default=None)

    def det(self, *arguments: str) -> str:
        """Run a `det` command."""
        return subprocess.run(
            [sys.executable, "-m", "determined.cli", *arguments],
            env={**os.environ, **self.connection.environment()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def checkpoints(self, trial: Trial, storage: Path | None = None) -> list[tuple[int, Path]]:
        """Return batch and folder of a trial's existing checkpoints, oldest first."""
        storage = storage or self.local.state / "checkpoints"
        found = trial.list_checkpoints()
        folders = [
            (int(each.metadata["steps_completed"]), storage / each.uuid)
            for each in found
            if each.metadata and each.state is CheckpointState.COMPLETED
        ]
        return sorted(folders)

    def final_state(self, trial: Trial, storage: Path | None = None) -> dict[str, Any]:
        """Return the model, optimizer and trainer state in a trial's last checkpoint."""
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
        """Wait until no task container is left."""
        self._wait_until(lambda: not self.task_containers(), 60)

    def task_containers(self) -> list[str]:
        """Return the ids of Determined's task containers on this machine."""
        label = "label=ai.determined.container.id"
        rows = self.docker("ps", "--all", "--filter", label, "--quiet")
        return rows.split()
