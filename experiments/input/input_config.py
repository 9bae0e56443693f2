"""The configuration of the input pipeline."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from experiments.runtime.cores import input_threads

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
_RANDOM = "random"  # bilinear or bicubic, drawn for each sample
_ERASING_MODES = ("const", "rand", "pixel")
_DEVICES = ("cpu", "gpu")


@dataclass(frozen=True)
class InputConfig:
    """How images are decoded, augmented and normalised.

    Attributes:
        image_size: (height, width) of the network's input, pixels.
        mean: Mean of the channels R, G, B, from 0 to 1.
        std: Standard deviation of the channels, on the same scale.
        fill_color: Colour of the padding: "mean", one grey value or (R, G, B), from 0 to 255.
        interpolation: bilinear, bicubic, lanczos, or (in training) random, which draws bilinear or
            bicubic for each sample.
        scale: Range of training's random resize, relative to the largest size that fits the input.
        reprob: Probability of random erasing.
        remode: What erased rectangles contain: const (0, the mean colour), rand (one random colour
            each) or pixel (noise).
        recount: Maximum number of rectangles that are erased in an image.
        device: Device of decoding and augmentation: cpu or gpu.
        device_id: Number of the GPU; ignored on a CPU.
        batch_device: Device of the batches; None: the one that decodes.
        hardware_decoder: Whether the GPU's JPEG engines decode a share of the images.
        threads: CPU threads of the pipeline.
        prefetch: Number of batches to prefetch.
        seed: The run's seed; used by training only.
        channels_last: Whether images are channels_last in memory, which needs no copy.
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
    batch_device: torch.device | None = None
    hardware_decoder: bool = False
    threads: int = field(default_factory=input_threads)
    prefetch: int = 2
    seed: int = 0
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
            ValueError: A value is invalid; the message names the field and what is allowed.
        """
        _require_length(self, "image_size", 2)
        _require_length(self, "mean", 3)
        _require_length(self, "std", 3)
        _require_length(self, "scale", 2)
        if min(self.image_size) < 1:
            _reject(self, "image_size", "(height, width), both at least 1")
        if not all(0 <= value <= 1 for value in self.mean):
            _reject(self, "mean", "three values from 0 to 1, for R, G, B")
        if not all(0 < value <= 1 for value in self.std):
            _reject(self, "std", "three values above 0 and at most 1, for R, G, B")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            _reject(self, "scale", "(smallest, largest), 0 < smallest <= largest")
        if not 0 <= self.reprob <= 1:
            _reject(self, "reprob", "a probability, from 0 to 1")
        if not 0 <= self.seed < 2**64:
            _reject(self, "seed", "between 0 and 2**64 - 1")
        if self.device_id < 0:
            _reject(self, "device_id", "the number of a GPU, from 0")
        for name in ("recount", "threads", "prefetch"):
            if getattr(self, name) < 1:
                _reject(self, name, "at least 1")
        _require_one_of(self, "interpolation", (*INTERPOLATIONS, _RANDOM))
        _require_one_of(self, "remode", _ERASING_MODES)
        _require_one_of(self, "device", _DEVICES)
        if self.device == "gpu" and self.torch_device != self._decoding_device:
            _reject(self, "batch_device", f"{self._decoding_device}, where images are decoded")
        self.fill_rgb  # noqa: B018  (raises if the colour is invalid)

    @property
    def torch_device(self) -> torch.device:
        """Device of the batches."""
        return self.batch_device or self._decoding_device

    @property
    def _decoding_device(self) -> torch.device:
        return torch.device("cuda", self.device_id) if self.device == "gpu" else torch.device("cpu")

    @property
    def random_interpolation(self) -> bool:
        """Whether the interpolation is drawn for each sample."""
        return self.interpolation == _RANDOM

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """Colour of the padding, as integers from 0 to 255, as in an image."""
        color = self.fill_color
        if color == "mean":
            red, green, blue = (round(255 * value) for value in self.mean)
            return red, green, blue
        if isinstance(color, int):
            color = (color, color, color)
        if isinstance(color, str) or len(color) != 3 or not all(0 <= c <= 255 for c in color):
            _reject(self, "fill_color", '"mean", or one or three integers from 0 to 255')
        return color


def _reject(config: InputConfig, name: str, allowed: str) -> NoReturn:
    raise ValueError(f"{name} is {getattr(config, name)!r}: it must be {allowed}")


def _require_length(config: InputConfig, name: str, length: int) -> None:
    value = getattr(config, name)
    if not isinstance(value, (tuple, list)) or len(value) != length:
        _reject(config, name, f"a tuple of {length} numbers")


def _require_one_of(config: InputConfig, name: str, allowed: Collection[str]) -> None:
    if getattr(config, name) not in allowed:
        _reject(config, name, "one of " + ", ".join(allowed))
