"""What a loader is told about the images that it is to make."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from experiments.runtime.process import default_threads

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
_RANDOM = "random"  # bilinear or bicubic, drawn for every sample
_ERASING_MODES = ("const", "rand", "pixel")
_DEVICES = ("cpu", "gpu")


@dataclass(frozen=True)
class InputConfig:
    """How images are decoded, augmented and normalised.

    Attributes:
        image_size: the network input's (height, width), pixels.
        mean: of the channels R, G, B on a scale of 0 to 1.
        std: of the channels, on the same scale.
        fill_color: of the padding: "mean", one grey value or (R, G, B), 0 to 255.
        interpolation: of the resize: bilinear, bicubic, lanczos, or (in training) random, which
            draws bilinear or bicubic for every sample.
        scale: range of training's random resize, relative to the largest size that fits the input.
        reprob: probability of random erasing.
        remode: what erasing leaves: const (0, the mean colour), rand (one random colour a
            rectangle) or pixel (noise).
        recount: most rectangles erased in an image.
        device: where images are decoded and augmented, and where batches lie: cpu or gpu.
        device_id: the GPU's number; without a meaning on the CPU.
        threads: CPU threads of the pipeline.
        prefetch: batches made ahead.
        seed: the run's; only training draws from it.
        channels_last: give the images channels_last memory, without a copy.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fill_color: str | int | tuple[int, int, int] = "mean"
    interpolation: str = "bilinear"
    scale: tuple[float, float] = (0.1, 2.0)
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    device: str = "cpu"
    device_id: int = 0
    threads: int = field(default_factory=default_threads)
    prefetch: int = 2
    seed: int = 0
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no image could be made with.

        Raises:
            ValueError: names the field and what it may be.
        """
        _require_length(self, "image_size", 2)
        _require_length(self, "mean", 3)
        _require_length(self, "std", 3)
        _require_length(self, "scale", 2)
        if min(self.image_size) < 1:
            _refuse(self, "image_size", "(height, width), both at least 1")
        if not all(0 <= value <= 1 for value in self.mean):
            _refuse(self, "mean", "three values of 0 to 1, R, G, B")
        if not all(0 < value <= 1 for value in self.std):
            _refuse(self, "std", "three values above 0 and up to 1, R, G, B")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            _refuse(self, "scale", "(smallest, largest), 0 < smallest <= largest")
        if not 0 <= self.reprob <= 1:
            _refuse(self, "reprob", "a probability, 0 to 1")
        if not 0 <= self.seed < 2**64:
            _refuse(self, "seed", "0 to 2**64 - 1")
        if self.device_id < 0:
            _refuse(self, "device_id", "the number of a GPU, from 0")
        for name in ("recount", "threads", "prefetch"):
            if getattr(self, name) < 1:
                _refuse(self, name, "at least 1")
        _require_one_of(self, "interpolation", (*INTERPOLATIONS, _RANDOM))
        _require_one_of(self, "remode", _ERASING_MODES)
        _require_one_of(self, "device", _DEVICES)
        self.fill_rgb  # noqa: B018  (raises where the colour is none)

    @property
    def torch_device(self) -> torch.device:
        """Where batches lie."""
        return torch.device("cuda", self.device_id) if self.device == "gpu" else torch.device("cpu")

    @property
    def draws_interpolation(self) -> bool:
        """Whether each sample draws its own interpolation."""
        return self.interpolation == _RANDOM

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """The padding's colour, 0 to 255, in whole numbers as an image would have it."""
        color = self.fill_color
        if color == "mean":
            red, green, blue = (round(255 * value) for value in self.mean)
            return red, green, blue
        if isinstance(color, int):
            color = (color, color, color)
        if isinstance(color, str) or len(color) != 3 or not all(0 <= c <= 255 for c in color):
            _refuse(self, "fill_color", '"mean", or one or three whole numbers of 0 to 255')
        return color


def _refuse(config: InputConfig, name: str, allowed: str) -> NoReturn:
    raise ValueError(f"{name} is {getattr(config, name)!r}: it must be {allowed}")


def _require_length(config: InputConfig, name: str, length: int) -> None:
    value = getattr(config, name)
    if not isinstance(value, (tuple, list)) or len(value) != length:
        _refuse(config, name, f"a tuple of {length} numbers")


def _require_one_of(config: InputConfig, name: str, allowed: Collection[str]) -> None:
    if getattr(config, name) not in allowed:
        _refuse(config, name, "one of " + ", ".join(allowed))
