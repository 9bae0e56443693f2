"""One step of the trial itself, counted by stage."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from determined import pytorch
from torch import Tensor

from bench.counting.backward import run_backward
from bench.counting.compiled import counted_compilation
from bench.counting.counter import Counts, StepCounter
from bench.counting.fake_gpu import CUDA, fake_gpu
from bench.counting.steps import STAGES, StepSettings
from cocodata import Categories, Split
from experiments.checkpoints.numerics import Numerics
from experiments.runtime.communication import Communicator, SingleProcess, TorchCommunicator
from experiments.settings.experiment import ExperimentConfig, parse_config
from experiments.settings.hparams import as_dict
from experiments.training.run import Run
from experiments.training.trial import EfficientDetTrial

RANKS = 4  # with sync_bn
_NUM_CLASSES = 90
_BATCHES_PER_EPOCH = 7393
_MOST_BOXES = (32, 64)  # in an image of COCO in a small and in a large batch, mostly


def count_step(settings: StepSettings) -> dict[str, Counts]:
    """Count the second step of a training, since the first allocates memory.

    Returns:
        The counts of each of STAGES.
    """
    counter = StepCounter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake_gpu())
        stack.enter_context(mock.patch("torch.autograd._engine_run_backward", run_backward))
        ranks = stack.enter_context(_ranks(counter)) if settings.sync_bn else SingleProcess()
        if settings.compiled:
            stack.enter_context(counted_compilation(counter))
        trial = stack.enter_context(_trial(settings, ranks))
        stack.enter_context(_staged(trial, counter))
        batch = _batch(settings)
        stack.enter_context(counter)
        for step in range(2):
            counter.stages = {stage: Counts() for stage in STAGES}
            trial.context._current_batch_idx = step
            trial.train_batch(batch, epoch_idx=0, batch_idx=step)
    return counter.stages


@contextlib.contextmanager
def _ranks(counter: StepCounter) -> Iterator[Communicator]:
    """Give NCCL's communicator without NCCL."""

    def all_reduce(_: Tensor) -> None:
        counter.current.collectives += 1

    distributed = "torch.distributed"
    with (
        mock.patch(f"{distributed}.get_rank", return_value=0),
        mock.patch(f"{distributed}.get_world_size", return_value=RANKS),
        mock.patch(f"{distributed}.get_backend", return_value="nccl"),
        mock.patch(f"{distributed}.all_reduce", all_reduce),
    ):
        yield TorchCommunicator(0)


def _config(settings: StepSettings, ranks: Communicator) -> ExperimentConfig:
    hparams = {
        "model": settings.model,
        "image_size": settings.image_size,
        "pretrained_backbone": False,
        "global_batch_size": settings.batch_size * ranks.size,
        "amp_dtype": settings.amp_dtype,
        "sync_bn": settings.sync_bn,
        **dict(settings.hparams),
    }
    searcher = {"name": "single", "metric": "AP", "smaller_is_better": False}
    return parse_config(
        {"data": {"path": "/nowhere"}, "hyperparameters": hparams, "searcher": searcher}
    )


@contextlib.contextmanager
def _trial(settings: StepSettings, ranks: Communicator) -> Iterator[EfficientDetTrial]:
    config = _config(settings, ranks)
    experiment = {"searcher": {"name": "single", "metric": "AP"}}
    with (
        mock.patch("experiments.training.trial.CocoGroundTruth"),  # reads annotations
        pytorch.init(
            hparams=as_dict(config.hparams), exp_conf=experiment, enable_tensorboard_logging=False
        ) as context,
    ):
        split = _split()
        numerics = Numerics(
            device="cuda",
            precision=settings.amp_dtype,
            decoder="CUDA",
            compile=config.hparams.compile,
            compile_loss=settings.compiled,
            deterministic=config.hparams.deterministic,
            sync_bn_with_horovod=False,
        )
        run = Run(config, split, split, ranks, _BATCHES_PER_EPOCH, numerics)
        trial = EfficientDetTrial(context, run)
        trial.detector.train()
        yield trial


def _split() -> Split:
    """Return a split of one image without boxes; a step does not read it."""
    ids = tuple(range(1, _NUM_CLASSES + 1))
    return Split(
        name="counted",
        image_dir=Path("nowhere"),
        annotation_file=Path("nowhere"),
        image_ids=np.ones(1, dtype=np.int64),
        file_names=["nowhere"],
        sizes=np.full((1, 2), 64, dtype=np.int32),
        box_offsets=np.zeros(2, dtype=np.int64),
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        categories=Categories(ids, tuple(map(str, ids))),
    )


def _batch(settings: StepSettings) -> dict[str, Any]:
    count, side = settings.batch_size, settings.image_size
    image = torch.empty(count, 3, side, side, device=CUDA)
    return {
        "image": image.to(memory_format=torch.channels_last),
        "boxes": torch.empty(count, 100, 4, device=CUDA),
        "labels": torch.empty(count, 100, dtype=torch.int64, device=CUDA),
        "box_count": np.full(count, _MOST_BOXES[count > 16]),  # has values
    }


@contextlib.contextmanager
def _staged(trial: EfficientDetTrial, counter: StepCounter) -> Iterator[None]:
    """Let the parts of a step say which stage they are."""
    parts: list[tuple[str, Any, str]] = [
        ("targets", trial, "_targets"),
        ("targets", trial.criterion, "normalizer"),
        ("forward", trial.model, "forward"),
        ("loss", trial, "_compare"),
        ("backward", trial.context, "backward"),
        ("update", trial.context, "step_optimizer"),
    ]
    if trial.ema is not None:
        parts.append(("update", trial.ema, "update"))
    if trial.scaler is not None:
        parts.append(("update", trial.scaler, "update"))
    with contextlib.ExitStack() as stack:
        for stage, owner, name in parts:
            stack.enter_context(
                mock.patch.object(owner, name, _in_stage(counter, stage, getattr(owner, name)))
            )
        yield


def _in_stage(counter: StepCounter, stage: str, part: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with counter.stage(stage):
            return part(*args, **kwargs)

    return run
