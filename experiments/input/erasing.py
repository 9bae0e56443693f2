"""Random erasing (Zhong et al., 2017, "Random Erasing Data Augmentation") of normalised images.

Up to ``recount`` rectangles in an image are replaced by the mean colour, a random colour or noise.
Their areas are relative to the image, without padding.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.input.augmentation import FloatArray, IntArray, Sizes, sample_generator
from experiments.input.input_config import InputConfig

_ERASING_STREAM = 1
_AREA = (0.02, 0.25)
_LOG_ASPECT_RATIO = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10


@dataclass(frozen=True)
class Erasure:
    """The rectangles to erase in one image of a batch.

    Attributes:
        row: Index of the image in the batch.
        rectangles: (top, left, height, width) in pixels of the input.
        noise_seed: Seed of the colours.
    """

    row: int
    rectangles: list[tuple[int, int, int, int]]
    noise_seed: int


@dataclass(frozen=True)
class Patch:
    """The new content of one rectangle.

    Attributes:
        row: Index of the image in the batch.
        rectangle: (top, left, height, width) in pixels of the input.
        colors: (3, height, width), or (3, 1, 1) for one colour.
    """

    row: int
    rectangle: tuple[int, int, int, int]
    colors: Tensor


def erasable_size(sizes: Sizes, scale: FloatArray, input_size: tuple[int, int]) -> IntArray:
    """Return the (height, width) to draw rectangles in, (N, 2), from (width, height), (N, 2)."""
    # In float32, as for the published models: it rounds up to a whole pixel where float64 would be
    # just below it.
    scaled = np.asarray(sizes, np.float32) / (1.0 / scale).astype(np.float32)[:, None]
    return np.minimum(scaled.astype(np.int64)[:, ::-1], input_size)


def draw_erasures(
    config: InputConfig, erasable: IntArray, image_ids: IntArray, epochs: IntArray
) -> list[Erasure]:
    """Draw the erasures of N images, a pure function of each image's (seed, epoch, image id)."""
    erasures = []
    if config.reprob > 0:
        samples = zip(erasable.tolist(), image_ids.tolist(), epochs.tolist(), strict=True)
        for row, ((height, width), image_id, epoch) in enumerate(samples):
            generator = sample_generator(config.seed, epoch, image_id, _ERASING_STREAM)
            rectangles = draw_rectangles(config, height, width, generator)
            if rectangles:
                noise_seed = int(generator.integers(2**63))
                erasures.append(Erasure(row, rectangles, noise_seed))
    return erasures


def draw_rectangles(
    config: InputConfig, height: int, width: int, generator: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """Draw the rectangles (top, left, height, width) to erase in an image; there may be none."""
    if generator.random() > config.reprob:
        return []
    count = 1 if config.recount == 1 else 1 + int(generator.random() * config.recount)
    rectangles = []
    for _ in range(count):
        for _ in range(_ATTEMPTS):
            area = _uniform(*_AREA, generator) * height * width / count
            aspect_ratio = math.exp(_uniform(*_LOG_ASPECT_RATIO, generator))
            tall = round(math.sqrt(area * aspect_ratio))
            wide = round(math.sqrt(area / aspect_ratio))
            if wide < width and tall < height:
                top = int(generator.random() * (height - tall + 1))
                left = int(generator.random() * (width - wide + 1))
                rectangles.append((top, left, tall, wide))
                break
    return rectangles


def draw_patches(erasures: list[Erasure], mode: str, *, pin: bool = False) -> list[Patch]:
    """Draw the colours of erased rectangles.

    On the CPU whatever device images are on, so that they are the same on all devices.

    Args:
        erasures: The rectangles.
        mode: What they contain, as in InputConfig.remode.
        pin: Whether to use page-locked memory, for images on a GPU.
    """
    patches = []
    for erasure in erasures:
        generator = torch.Generator().manual_seed(erasure.noise_seed)
        for rectangle in erasure.rectangles:
            if mode == "const":
                colors = torch.zeros(3, 1, 1)
            else:
                shape = (3, *rectangle[2:]) if mode == "pixel" else (3, 1, 1)
                colors = torch.randn(shape, generator=generator)
            patches.append(Patch(erasure.row, rectangle, colors.pin_memory() if pin else colors))
    return patches


def erase(images: Tensor, patches: list[Patch]) -> None:
    """Replace rectangles in normalised images, (N, 3, H, W), in place."""
    for patch in patches:
        top, left, height, width = patch.rectangle
        window = images[patch.row, :, top : top + height, left : left + width]
        # To the device first: a copy into a window would repeat a single colour on the host.
        window.copy_(patch.colors.to(images.device, non_blocking=True))


def _uniform(low: float, high: float, generator: np.random.Generator) -> float:
    return low + (high - low) * generator.random()
