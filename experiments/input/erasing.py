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


def erase(images: Tensor, erasures: list[Erasure], mode: str) -> None:
    """Erase rectangles in normalised images, (N, 3, H, W), in place."""
    for erasure in erasures:
        image = images[erasure.row]
        generator = torch.Generator(images.device).manual_seed(erasure.noise_seed)
        for top, left, height, width in erasure.rectangles:
            window = image[:, top : top + height, left : left + width]
            if mode == "const":
                window.zero_()
            else:
                shape = (3, height, width) if mode == "pixel" else (3, 1, 1)
                window.copy_(torch.randn(shape, generator=generator, device=images.device))


def _uniform(low: float, high: float, generator: np.random.Generator) -> float:
    return low + (high - low) * generator.random()
