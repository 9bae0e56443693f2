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

ROOT = Path(__file__).resolve().parents[2]
_BATCH = 16
_BATCHES = 60
_UNTIMED = 20  # the first batches allocate memory, and open connections
_TIMEOUT_SECONDS = 600.0


class Ranks:
    """The tiny detector on generated batches; each measurement is a run of its own.

    Args:
        settings: Settings of the benchmark.
        launcher: torchrun or horovodrun.
        ranks: Processes, which share the batch.
        hparams: Hyperparameters of the recipe to change.
    """

    def __init__(
        self, settings: Settings, *, launcher: str, ranks: int, hparams: dict[str, Any]
    ) -> None:
        self._launcher, self._ranks = launcher, ranks
        self._folder = settings.scratch / f"ranks-{os.getpid()}"
        self._folder.mkdir()
        self._data = settings.data
        self._config = self._folder / "experiment.yaml"
        # Whole epochs are trained, and an evaluation is at their end.
        batches_per_epoch = -(-len(open_split(settings, training=True)) // _BATCH)
        epochs = -(-_BATCHES // batches_per_epoch)
        self._config.write_text(yaml.safe_dump(_experiment(epochs, hparams)))

    def warm_up(self) -> None:
        """Do nothing: each run leaves out its first batches."""

    def measure(self, seconds: float) -> Measurement:
        """Train, and return the time of all batches but the first.

        Raises:
            RuntimeError: The run failed.
        """
        out = self._folder / "run"
        # As with distributed.yaml on a cluster.
        horovod = ["--gloo", "--cycle-time-ms", "2", "--fusion-threshold-mb", "1"]
        launch = {
            "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node"],
            "horovodrun": ["horovod.runner.launch", *horovod, "-np"],
        }[self._launcher]
        command = [
            *(sys.executable, "-m", *launch, str(self._ranks)),
            *([sys.executable] if self._launcher == "horovodrun" else []),
            *(str(ROOT / "experiments" / "train.py"), "--config", str(self._config)),
            *("--data", str(self._data), "--out", str(out), "--fresh"),
        ]
        # torchrun would give each rank one thread where nothing is set.
        threads = max(1, len(os.sched_getaffinity(0)) // self._ranks)
        subprocess.run(
            command,
            check=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
        )
        return _timed(out / "metrics.jsonl")


def _experiment(epochs: int, hparams: dict[str, Any]) -> dict[str, Any]:
    return {
        "hyperparameters": {
            **{"model": "tiny", "pretrained_backbone": False, "amp": False, "fake_data": True},
            **{"global_batch_size": _BATCH, "epochs": epochs, "lr": 1e-4, "warmup_lr": 1e-4},
            **{"warmup_epochs": 0, "cooldown_epochs": 0, "lr_noise": None, "input_threads": 1},
            **{"val_skip": 1000},
            **hparams,
        },
        "searcher": {"name": "single", "metric": "AP", "smaller_is_better": False},
        "scheduling_unit": 10,
    }


def _timed(metrics: Path) -> Measurement:
    """Return the images and seconds of a run's record, without the first batches."""
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    reports = [each for each in entries if each["kind"] == "train" and each["batches"] >= _UNTIMED]
    first, last = reports[0], reports[-1]
    return Measurement(_BATCH * (last["batches"] - first["batches"]), last["time"] - first["time"])
