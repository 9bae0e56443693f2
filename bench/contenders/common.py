"""What both sides of a comparison share: device, batch, optimizer, and the first weights."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.measuring import Device, Loop, Settings
from cocodata import DatasetError, Split, load_split, splits
from experiments.settings.hparams import HParams
from experiments.training.optimization import build_optimizer
from model import EfficientDet, build_detector

Batch = dict[str, Tensor]

MAX_BOXES = 100
_BOXES_PER_IMAGE = 7  # COCO's mean

# Long enough that no measurement sees the end of an epoch, which costs loaders a new start.
_EPOCH_IMAGES = 20_000


def prepare_torch(settings: Settings) -> None:
    """Set what a process's calculations run with: threads, kernels, seed."""
    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(settings.seed)


def first_detector(settings: Settings) -> EfficientDet:
    """The detector with the weights that all contenders begin with."""
    torch.manual_seed(settings.seed)
    side = settings.image_size
    return build_detector(settings.model, settings.num_classes, (side, side))


def autocast(device: Device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 on a GPU; on these CPUs it is slower than float32."""
    if device == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """The training recipe's optimizer, at a rate at which random weights stay finite."""
    return build_optimizer(model, HParams(lr=1e-4))


def generated_batch(settings: Settings, device: Device) -> Batch:
    """A batch like COCO's: noise with seven boxes an image, the rest padding."""
    generator = torch.Generator().manual_seed(settings.seed)
    count, side = settings.batch(device), settings.image_size
    boxes = torch.full((count, MAX_BOXES, 4), -1.0)
    labels = torch.full((count, MAX_BOXES), -1)
    shape = (count, _BOXES_PER_IMAGE, 2)
    extent = side * (0.05 + 0.95 * torch.rand(shape, generator=generator) ** 2)
    corner = (side - extent) * torch.rand(shape, generator=generator)
    boxes[:, :_BOXES_PER_IMAGE] = torch.cat([corner, corner + extent], dim=-1)
    labels[:, :_BOXES_PER_IMAGE] = torch.randint(
        1, settings.num_classes + 1, shape[:2], generator=generator
    )
    image = torch.randn(count, 3, side, side, generator=generator)
    return {
        "image": image.to(device, memory_format=torch.channels_last),
        "boxes": boxes.to(device),
        "labels": labels.to(device),
    }


def open_split(settings: Settings, *, training: bool) -> Split:
    """A split of the data set.

    Raises:
        DatasetError: it cannot be read, or has classes that the published detectors lack.
    """
    split = load_split(settings.data, splits(settings.data)[0 if training else 1])
    if max(split.categories.ids) > settings.num_classes:
        raise DatasetError(
            f"{split.annotation_file}: category {max(split.categories.ids)} is beyond the "
            f"{settings.num_classes} classes of the detectors compared: measure on COCO, a part "
            "of it, or the mini data set"
        )
    return split


def times_to_repeat(num_images: int) -> int:
    """How often a split is repeated to make a long epoch."""
    return math.ceil(_EPOCH_IMAGES / num_images)


def repeated(split: Split) -> Split:
    """The split many times over, each image with an id of its own."""
    times = times_to_repeat(len(split))
    step = int(split.image_ids.max()) + 1
    shifts = np.repeat(np.arange(times) * step, len(split))
    counts = np.tile(np.diff(split.box_offsets), times)
    return Split(
        name=split.name,
        image_dir=split.image_dir,
        annotation_file=split.annotation_file,
        image_ids=np.tile(split.image_ids, times) + shifts,
        file_names=split.file_names * times,
        sizes=np.tile(split.sizes, (times, 1)),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=np.tile(split.boxes, (times, 1)),
        labels=np.tile(split.labels, times),
        categories=split.categories,
    )


class TrainingSubject(Loop):
    """Training steps; a subclass says how a step goes.

    Attributes:
        loss: of the last step, on the device.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.loss: Tensor | None = None
        # A GPU's first steps try out kernels, and compile.
        self.warm_up_steps = 8 if device == "cuda" else 2

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def finished(self) -> None:
        """Refuse to time what is not training.

        Raises:
            RuntimeError: the loss is not finite, and such numbers may take another time.
        """
        if self.loss is not None and not math.isfinite(float(self.loss)):
            raise RuntimeError(f"the loss is {float(self.loss)}: this measures nothing")


class StageClock:
    """Adds up the time of a step's stages: of the CPU, or on the GPU's own clock.

    On a GPU the stages are marked in its queue of work and read after the measurement, so that
    looking does not hold it up.
    """

    def __init__(self, device: Device) -> None:
        self._on_gpu = device == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        begin = self._now()
        yield
        self._marks.append((name, begin, self._now()))

    def take(self) -> dict[str, float]:
        """Seconds of each stage since the last call; all work must be done."""
        totals: dict[str, float] = {}
        for name, begin, end in self._marks:
            seconds = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            totals[name] = totals.get(name, 0.0) + seconds
        self._marks.clear()
        return totals

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
