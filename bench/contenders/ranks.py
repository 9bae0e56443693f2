"""Training runs on several ranks, each started by a launcher as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bench.contenders.common import open_split
from bench.measuring import Measurement, Settings
from bench.scaling import baseline_tree

ROOT = Path(__file__).resolve().parents[2]
_PROCESSOR_RANK = {"model": "tiny", "amp": False}, 8  # hyperparameters, and images per batch
_GPU_RANK = {"model": "efficientdet_d0", "amp": True, "channels_last": True}, 16
_BATCHES = 60
_UNTIMED = 20  # the first batches allocate memory, and open connections
_TIMEOUT_SECONDS = 600.0


class Ranks:
    """Training on generated batches: D0 on GPUs, otherwise the tiny detector.

    Each measurement is a run of its own.

    Args:
        settings: Settings of the benchmark.
        launcher: torchrun or horovodrun; None for a single process.
        ranks: Processes, each with a batch of the same size and one thread.
        hparams: Hyperparameters to change.
        revision: Commit whose code trains, in `baseline_tree`; None for this code.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        launcher: str | None,
        ranks: int,
        hparams: dict[str, Any],
        revision: str | None = None,
    ) -> None:
        self._launcher, self._ranks = launcher, ranks
        self._tree = baseline_tree(settings, revision) if revision else ROOT
        self._folder = settings.scratch / f"ranks-{os.getpid()}"
        self._folder.mkdir()
        self._data = settings.data
        self._config = self._folder / "experiment.yaml"
        own, batch = _GPU_RANK if _has_gpu() else _PROCESSOR_RANK
        self._batch = batch * ranks
        # Whole epochs are trained, and an evaluation is at their end.
        batches_per_epoch = -(-len(open_split(settings, training=True)) // self._batch)
        epochs = -(-_BATCHES // batches_per_epoch)
        experiment = _experiment(epochs, {"global_batch_size": self._batch, **own, **hparams})
        self._config.write_text(yaml.safe_dump(experiment))

    def warm_up(self) -> None:
        """Do nothing: each run leaves out its first batches."""

    def measure(self, seconds: float) -> Measurement:
        """Train, and return the time of all batches but the first.

        Raises:
            RuntimeError: The run failed.
        """
        out = self._folder / "run"
        # One thread for each rank, however many there are: what is measured is their exchange.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": self._search_path()}
        result = subprocess.run(
            [
                *self._launch(),
                *(str(self._tree / "experiments" / "train.py"), "--config", str(self._config)),
                *("--data", str(self._data), "--out", str(out), "--fresh"),
            ],
            check=False,
            cwd=self._tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
        )
        if result.returncode:
            raise RuntimeError(f"training ended with status {result.returncode}")
        return self._timed(out / "metrics.jsonl")

    def _search_path(self) -> str:
        return f"{self._tree}{os.pathsep}{self._tree / 'data-prep'}"

    def _launch(self) -> list[str]:
        ranks = str(self._ranks)
        if self._launcher is None:
            return [sys.executable]
        if self._launcher == "torchrun":
            options = ["--standalone", "--nproc_per_node", ranks]
            return [sys.executable, "-m", "torch.distributed.run", *options]
        # As with distributed.yaml on a cluster.
        options = ["--cycle-time-ms", "2", "--fusion-threshold-mb", "1", "-np", ranks]
        if not _has_gpu():
            options.append("--gloo")
        return [sys.executable, "-m", "horovod.runner.launch", *options, sys.executable]

    def _timed(self, metrics: Path) -> Measurement:
        """Return the images and seconds of a run's record, without the first batches."""
        entries = [json.loads(line) for line in metrics.read_text().splitlines()]
        reports = [e for e in entries if e["kind"] == "train" and e["batches"] >= _UNTIMED]
        first, last = reports[0], reports[-1]
        images = self._batch * (last["batches"] - first["batches"])
        return Measurement(images, last["time"] - first["time"])


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _experiment(epochs: int, hparams: dict[str, Any]) -> dict[str, Any]:
    return {
        "hyperparameters": {
            **{"pretrained_backbone": False, "fake_data": True, "input_threads": 1},
            **{"epochs": epochs, "lr": 1e-4, "warmup_lr": 1e-4, "lr_noise": None},
            **{"warmup_epochs": 0, "cooldown_epochs": 0, "val_skip": 1000},
            **hparams,
        },
        "searcher": {"name": "single", "metric": "AP", "smaller_is_better": False},
        "scheduling_unit": 10,
    }
