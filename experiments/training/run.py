"""One run of training: its settings, data, ranks and starting point, and where it lives."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from determined import core, pytorch

from cocodata import Split
from experiments.evaluation.loop import Evaluation
from experiments.input.decoder import input_device, jpeg_decoder
from experiments.runtime.communication import Communicator, communicator
from experiments.settings.experiment import ExperimentConfig
from experiments.settings.hparams import HParamError
from experiments.training.dataset import load_splits


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins or continues."""

    checkpoint: str | None = None  # its UUID; None starts with new weights
    batches: int = 0  # trained before
    finished: bool = False  # nothing is left to train


@dataclass(frozen=True)
class Run:
    """Everything that a trial is built from."""

    config: ExperimentConfig
    train: Split
    val: Split
    communicator: Communicator
    batches_per_epoch: int
    start: StartingPoint = StartingPoint()
    folder: Path | None = None  # of a run without a cluster
    searched_trial: int | None = None  # id of a trial that a search may stop early
    decoder: str = "CPU"  # of the training images, in words

    @property
    def first_batch(self) -> int:
        """Batches trained before this process started."""
        return self.start.batches

    @property
    def total_batches(self) -> int:
        """Batches of the whole run."""
        return self.config.hparams.total_epochs * self.batches_per_epoch


class RunHome(Protocol):
    """Where a run lives: what it continues from, and who keeps its record.

    All that differs between a run in a folder of this machine and a trial on a cluster.
    """

    config: ExperimentConfig

    @property
    def folder(self) -> Path | None:
        """The folder that keeps the run's record; None if Determined keeps it."""
        ...

    @property
    def searched_trial(self) -> int | None:
        """The id of a trial that a search may stop early."""
        ...

    def open(self) -> AbstractContextManager[pytorch.PyTorchTrialContext]:
        """Join the other ranks and set up Determined."""
        ...

    def starting_point(self, context: pytorch.PyTorchTrialContext) -> StartingPoint:
        """Where to start, the same on every rank."""
        ...

    def begin(self, context: pytorch.PyTorchTrialContext, run: Run) -> None:
        """Record what the run is, on the first rank, before its first batch."""
        ...

    def finish(self, run: Run, evaluate: Callable[[], Evaluation]) -> None:
        """Record the end of a run that reached its last batch, on the first rank."""
        ...


def prepare_run(
    home: RunHome,
    distributed: core.DistributedContext,
    start: StartingPoint,
    device: torch.device,
) -> Run:
    """Load the data and divide the work among the ranks.

    Args:
        home: Where the run lives.
        distributed: The ranks.
        start: Where to start.
        device: The device that this rank trains on.

    Raises:
        DatasetError: the data set is invalid, or machines have different ones.
        DeviceError: this rank's GPU lacks the decoder that the run asks for.
        HParamError: the global batch cannot be divided among the ranks.
    """
    ranks = communicator()
    batch_size = home.config.hparams.global_batch_size
    if batch_size % ranks.size:
        raise HParamError(
            f"global_batch_size: {batch_size} cannot be divided among {ranks.size} ranks; use a "
            f"multiple of {ranks.size}"
        )
    decodes = input_device(home.config.hparams, device, ranks.local_rank)
    decoder = jpeg_decoder(decodes, hardware=home.config.hparams.hardware_decoder)
    train, val = load_splits(home.config, distributed)
    return Run(
        config=home.config,
        train=train,
        val=val,
        communicator=ranks,
        batches_per_epoch=math.ceil(len(train) / batch_size),
        start=start,
        folder=home.folder,
        searched_trial=home.searched_trial,
        decoder=decoder,
    )
