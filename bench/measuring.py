"""What is measured: contenders, and the time that a piece of their work took."""

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
    """What contenders are told.

    Attributes:
        data: folder of COCO's layout.
        scratch: folder for what a comparison generates.
        batch_size: images of a batch on a CPU.
        gpu_batch_size: images of a batch on a GPU.
        image_size: side of the network's input, pixels.
        threads: CPU threads of the model, and of our input.
        coco_images: images of the generated result that COCO's metrics are computed of.
        model: the detector.
        num_classes: its classes, as published.
        seed: of weights and samples.
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
        """Images of a batch on a device."""
        return self.gpu_batch_size if device == "cuda" else self.batch_size


@dataclass(frozen=True)
class Measurement:
    """One timed piece of work.

    Attributes:
        work: how much was done, in the comparison's unit (images, evaluations).
        seconds: in what time.
        stages: seconds of each stage, where the contender tells them apart.
        outcome: numbers that the work gave, to hold contenders against each other.
    """

    work: float
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    outcome: dict[str, float] = field(default_factory=dict)


class Contender(Protocol):
    """Something that can be measured again and again, in a process of its own."""

    def warm_up(self) -> None:
        """Do what only the first piece of work needs."""

    def measure(self, seconds: float) -> Measurement:
        """Work for about that long, at least once."""


@dataclass(frozen=True)
class ContenderSpec:
    """How to make a contender.

    The class is named, not held: each process imports only what its own contender needs, so that no
    contender pays with its memory for another's libraries.

    Attributes:
        name: for people.
        role: ours, a peer, or a reference that shows what is possible.
        target: its class, "package.module:Class"; called with the settings and the options.
        options: keyword arguments.
    """

    name: str
    role: Role
    target: str
    options: dict[str, Any] = field(default_factory=dict)

    def resolve(self) -> Callable[..., Contender]:
        """Import the class.

        Raises:
            ImportError: there is no such module.
            AttributeError: the module has no such class.
        """
        module, _, name = self.target.partition(":")
        found: Callable[..., Contender] = getattr(importlib.import_module(module), name)
        return found


class Loop:
    """A contender that repeats a step; all the time of all steps counts.

    Attributes:
        lead_in: steps before each timed piece. A loader that was idle has batches ready, which
            would count as made in no time: where nothing but the loader works, they are drawn
            first.
        warm_up_steps: steps before the first timed piece.
    """

    lead_in = 0
    warm_up_steps = 2

    def step(self) -> int:
        """Do one step; the images that it worked on."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all that was begun is done."""

    def finished(self) -> None:
        """Look at what the steps gave, outside the timed piece; an error fails the contender."""

    def warm_up(self) -> None:
        """Do the first steps, which make plans, kernels and room in memory."""
        for _ in range(self.warm_up_steps):
            self.step()
        self.synchronize()
        self.finished()

    def measure(self, seconds: float) -> Measurement:
        """Step until the time is over."""
        for _ in range(self.lead_in):
            self.step()
        self.synchronize()
        images = 0
        start = time.perf_counter()
        while images == 0 or time.perf_counter() - start < seconds:
            images += self.step()
        self.synchronize()
        elapsed = time.perf_counter() - start
        self.finished()
        return Measurement(images, elapsed, self.stages())

    def stages(self) -> dict[str, float]:
        """Seconds of each stage since the last call."""
        return {}
