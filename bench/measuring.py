"""Contenders, and how their work is timed."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Role = Literal["ours", "peer", "reference"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Settings:
    """Settings for all contenders.

    Attributes:
        data: Data set in COCO's layout.
        scratch: Folder for generated files.
        batch_size: Images per batch on a CPU.
        gpu_batch_size: Images per batch on a GPU.
        image_size: Height and width of the network's input, pixels.
        threads: CPU threads of the model and of our input pipeline.
        coco_images: Images in the generated detections that COCO metrics are computed for.
        model: Name of the detector.
        num_classes: Number of its classes, as published.
        seed: Seed of weights and samples.
    """

    data: Path
    scratch: Path
    batch_size: int
    gpu_batch_size: int
    image_size: int
    threads: int
    coco_images: int
    model: str = "efficientdet_d0"
    num_classes: int = 90
    seed: int = 42

    def batch(self, device: Device) -> int:
        """Return the batch size on a device."""
        return self.gpu_batch_size if device == "cuda" else self.batch_size


@dataclass(frozen=True)
class Measurement:
    """One timed piece of work.

    Attributes:
        work: Amount of work, such as the number of images or evaluations.
        seconds: Time that it took.
        stages: Seconds per stage, if the contender measures them.
        outcome: Numbers that were computed, to check that contenders agree.
    """

    work: float
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    outcome: dict[str, float] = field(default_factory=dict)


class Contender(Protocol):
    """Something that can be measured repeatedly, in its own process."""

    def warm_up(self) -> None:
        """Do the work that only the first steps need, such as compiling."""

    def measure(self, seconds: float) -> Measurement:
        """Work for about that long, but at least once."""


@dataclass(frozen=True)
class ContenderSpec:
    """How to create a contender.

    The class is given by name, so that each process imports only its own contender's libraries and
    the memory of others is not counted for it.

    Attributes:
        name: Name in reports.
        role: Ours, a peer, or a reference that shows what is possible.
        target: Its class as "package.module:Class", called with the settings and the options.
        options: Keyword arguments.
    """

    name: str
    role: Role
    target: str
    options: dict[str, Any] = field(default_factory=dict)

    def resolve(self) -> Callable[..., Contender]:
        """Import the class.

        Raises:
            ImportError: There is no such module.
            AttributeError: The module has no such class.
        """
        module, _, name = self.target.partition(":")
        contender_class: Callable[..., Contender] = getattr(importlib.import_module(module), name)
        return contender_class


class Loop:
    """A contender that repeats a step.

    Attributes:
        untimed_steps: Steps before each measurement, to use up the batches that a loader has
            prefetched while it was idle.
        warm_up_steps: Steps before the first measurement.
    """

    untimed_steps = 0
    warm_up_steps = 2

    def step(self) -> int:
        """Do one step; return the number of images in it."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all pending work is done."""

    def check(self) -> None:
        """Check the results of the steps, untimed; an exception fails the contender."""

    def warm_up(self) -> None:
        """Do the first steps, which select kernels and allocate memory."""
        for _ in range(self.warm_up_steps):
            self.step()
        self.synchronize()
        self.check()

    def measure(self, seconds: float) -> Measurement:
        """Repeat steps for that long."""
        for _ in range(self.untimed_steps):
            self.step()
        self.synchronize()
        images = 0
        start = time.perf_counter()
        while images == 0 or time.perf_counter() - start < seconds:
            images += self.step()
        self.synchronize()
        elapsed = time.perf_counter() - start
        self.check()
        return Measurement(images, elapsed, self.stages())

    def stages(self) -> dict[str, float]:
        """Return the seconds per stage since the last call."""
        return {}
