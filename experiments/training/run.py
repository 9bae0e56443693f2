"""One run of training: its settings, data, ranks and starting point, and where it lives."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from determined import core, pytorch

from cocodata import Categories, Split
from experiments.checkpoints.numerics import Numerics, changes
from experiments.evaluation.loop import Evaluation
from experiments.input.decoder import input_device, jpeg_decoder
from experiments.runtime import provenance
from experiments.runtime.communication import Communicator, communicator
from experiments.runtime.compiler import why_not_compiled
from experiments.runtime.precision import resolve_precision
from experiments.settings.experiment import ExperimentConfig
from experiments.settings.hparams import HParamError, HParams
from experiments.training.dataset import load_splits


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins or continues."""

    checkpoint: str | None = None  # its UUID; None starts with new weights
    batches: int = 0  # trained before
    finished: bool = False  # nothing is left to train
    numerics: Mapping[str, Any] = field(default_factory=dict)  # of the checkpoint
    trained: Categories | None = None  # the classes of the checkpoint, which give the labels


@dataclass(frozen=True)
class Run:
    """Everything that a trial is built from."""

    config: ExperimentConfig
    train: Split
    val: Split
    communicator: Communicator
    batches_per_epoch: int
    numerics: Numerics
    start: StartingPoint = StartingPoint()
    folder: Path | None = None  # of a run without a cluster
    searched_trial: int | None = None  # id of a trial that a search may stop early

    @property
    def first_batch(self) -> int:
        """Batches trained before this process started."""
        return self.start.batches

    @property
    def changed_numerics(self) -> list[str]:
        """What the run computes in another way than the checkpoint that it continues from."""
        return changes(self.start.numerics, self.numerics)

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

    def accept(self, start: StartingPoint, changed: Sequence[str]) -> None:
        """Decide on every rank whether to go on although the checkpoint had other numerics.

        Args:
            start: the checkpoint.
            changed: what is different now; may be empty.
        """
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
        HParamError: the global batch cannot be divided among the ranks, or num_classes is not the
            data's.
        RunError: the run goes on from a checkpoint that was computed in another way.
    """
    ranks = communicator()
    batch_size = home.config.hparams.global_batch_size
    if batch_size % ranks.size:
        raise HParamError(
            f"global_batch_size: {batch_size} cannot be divided among {ranks.size} ranks; use a "
            f"multiple of {ranks.size}"
        )
    numerics = resolve_numerics(home.config.hparams, device, ranks, start.numerics)
    home.accept(start, changes(start.numerics, numerics))
    train, val = load_splits(home.config, distributed, start.trained, resumes=start.batches > 0)
    require_num_classes(home.config.hparams, train.categories)
    return Run(
        config=home.config,
        train=train,
        val=val,
        communicator=ranks,
        batches_per_epoch=math.ceil(len(train) / batch_size),
        numerics=numerics,
        start=start,
        folder=home.folder,
        searched_trial=home.searched_trial,
    )


def require_num_classes(hparams: HParams, categories: Categories) -> None:
    """Check that a set number of classes is the one that the data needs.

    Raises:
        HParamError: It is another one.
    """
    needed = categories.num_classes
    if hparams.num_classes not in (None, needed):
        raise HParamError(
            f"num_classes: is {hparams.num_classes}, but the data set has {len(categories)} "
            f"categories, which take the labels 1 to {needed}; leave num_classes out, or set "
            f"{needed}"
        )


def resolve_numerics(
    hparams: HParams, device: torch.device, ranks: Communicator, before: Mapping[str, Any]
) -> Numerics:
    """Find what a run computes with; all ranks must call this.

    Args:
        hparams: The run's hyperparameters.
        device: The device that this rank trains on.
        ranks: All ranks.
        before: Numerics of the checkpoint that the run continues from; empty for a new run.

    Raises:
        DeviceError: This rank's GPU lacks the decoder that the run asks for.
    """
    decodes = input_device(hparams, device)
    can_compile = _can_compile(hparams, device, ranks)
    return Numerics(
        device=device.type,
        precision=resolve_precision(hparams, device, ranks, before.get("precision")),
        decoder=jpeg_decoder(decodes, hardware=hparams.hardware_decoder),
        compile=can_compile and hparams.compile,
        deterministic=hparams.deterministic,
        sync_bn_with_horovod=hparams.sync_bn and hparams.sync_bn_with_horovod,
        compile_loss=can_compile and not hparams.compile,
    )


def _can_compile(hparams: HParams, device: torch.device, ranks: Communicator) -> bool:
    """Whether something is to be compiled and can be; print a line if it cannot."""
    if not (hparams.compile or (hparams.compile_loss and device.type == "cuda")):
        return False
    reason = why_not_compiled(device)
    if reason is not None and ranks.rank == 0:
        print(
            f"not compiled, so training is slower: {reason}. torch.compile needs a C compiler "
            "(gcc) and Python's headers; compile: false and compile_loss: false do without",
            flush=True,
        )
    return reason is None


def describe_numerics(run: Run) -> list[str]:
    """Return lines that say what a run computes with, and what of it the checkpoint did not have.

    A loss scale belongs to float16 alone: it starts anew if a run changes to it.
    """
    numerics = run.numerics
    lines = [
        f"device: {provenance.device()}; precision: {numerics.precision}; "
        f"images decoded by: {numerics.decoder}"
    ]
    if changed := run.changed_numerics:
        lines.append(
            f"computed in another way than the checkpoint ({'; '.join(changed)}): from here on, "
            "weights are not those of an unchanged run"
        )
    return lines
