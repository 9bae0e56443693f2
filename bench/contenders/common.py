"""What both sides of a comparison share: device, batch, optimizer and initial weights."""

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

# So long that no measurement includes the end of an epoch, where loaders restart.
_EPOCH_IMAGES = 20_000


def prepare_torch(settings: Settings) -> None:
    """Set PyTorch's threads, kernel selection and seed."""
    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(settings.seed)


def initial_detector(settings: Settings) -> EfficientDet:
    """Build the detector with the initial weights of all contenders."""
    torch.manual_seed(settings.seed)
    side = settings.image_size
    return build_detector(settings.model, settings.num_classes, (side, side))


def autocast(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Return autocast to bfloat16 on a GPU; on CPUs, where it is slower, keep float32."""
    if device == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def synchronize(device: Device) -> None:
    """Wait until a GPU has done all its work; a CPU has none pending."""
    if device == "cuda":
        torch.cuda.synchronize()


def create_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Create the recipe's optimizer, with a learning rate at which random weights stay finite."""
    return build_optimizer(model, HParams(lr=1e-4))


def generated_batch(settings: Settings, device: Device) -> Batch:
    """Generate a batch of noise with seven boxes per image; the rest is padding."""
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
    """Load the training or the validation split.

    Raises:
        DatasetError: It cannot be read, or has classes that the published detectors lack.
    """
    split = load_split(settings.data, splits(settings.data)[0 if training else 1])
    if max(split.categories.ids) > settings.num_classes:
        raise DatasetError(
            f"{split.annotation_file}: category id {max(split.categories.ids)} is too large for "
            f"the compared detectors, which have {settings.num_classes} classes; use COCO, a "
            "subset of it, or the mini data set"
        )
    return split


def repeat_count(num_images: int) -> int:
    """Return how often to repeat a split for a long epoch."""
    return math.ceil(_EPOCH_IMAGES / num_images)


def repeat_split(split: Split) -> Split:
    """Repeat a split's images for a long epoch, with unique ids."""
    times = repeat_count(len(split))
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


class TrainingLoop(Loop):
    """Repeated training steps; subclasses implement the step.

    Attributes:
        loss: Loss of the last step, on the device.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.loss: Tensor | None = None
        # On a GPU, the first steps compile, and try out kernels.
        self.warm_up_steps = 8 if device == "cuda" else 2

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self.device)

    def check(self) -> None:
        """Check that the loss is finite, since arithmetic on NaN may take a different time.

        Raises:
            RuntimeError: It is NaN or infinite.
        """
        if self.loss is not None and not math.isfinite(float(self.loss)):
            raise RuntimeError(f"the loss is {float(self.loss)}, so the timing is meaningless")


class StageTimer:
    """Adds up the times of a step's stages, by the CPU's clock or by CUDA events.

    The events are read only after the measurement, so that timing does not stall the GPU.
    """

    def __init__(self, device: Device) -> None:
        self._on_gpu = device == "cuda"
        self._intervals: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with` statement."""
        start = self._now()
        yield
        self._intervals.append((name, start, self._now()))

    def pop_totals(self) -> dict[str, float]:
        """Return the seconds per stage since the last call; pending GPU work must be done."""
        totals: dict[str, float] = {}
        for name, start, end in self._intervals:
            seconds = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            totals[name] = totals.get(name, 0.0) + seconds
        self._intervals.clear()
        return totals

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
