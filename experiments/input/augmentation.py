"""The geometry of EfficientDet's input: where the pixels and boxes of an image go.

Training flips an image with probability 1/2, resizes it by a random factor ("scale jitter",
EfficientDet, section 4.1) and crops a random window of the input's size; evaluation resizes it to
fit. The result is placed at the top left of the input. Random numbers are a pure function of (seed,
epoch, image id). Sizes are computed in float64, so that truncation agrees with Python's ``int``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.input.input_config import INTERPOLATIONS, InputConfig

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoxArray = npt.NDArray[np.float32]
Sizes = npt.NDArray[np.integer[Any]]

MAX_BOXES = 100
PADDING = -1

_GEOMETRY_STREAM = 0
_GEOMETRY_DRAWS = 5
_RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")


def sample_generator(
    seed: int, epoch: int, image_id: int, stream: int = _GEOMETRY_STREAM
) -> np.random.Generator:
    """Create the random generator of one image in one epoch, a Philox counter-based generator.

    Each purpose has its own ``stream``, so that enabling one augmentation does not change the
    random numbers of another.
    """
    bits = np.random.Philox(
        key=np.array([seed, epoch], np.uint64),
        counter=np.array([0, 0, stream, image_id], np.uint64),
    )
    return np.random.Generator(bits)


@dataclass(frozen=True)
class Geometry:
    """The geometry of N images. Sizes are (height, width) and offsets (y, x), in pixels.

    Attributes:
        source_size: (N, 2) int64, size of the stored image.
        scaled_size: (N, 2) int64, size after resizing.
        offset: (N, 2) int64, offset of the window in the resized image.
        scale: (N,) float64, input pixels per source pixel.
        flip: (N,) bool, whether the image is flipped horizontally.
        interpolation: (N,) int32, index into INTERPOLATIONS.
        input_size: Size of the network's input.
    """

    source_size: IntArray
    scaled_size: IntArray
    offset: IntArray
    scale: FloatArray
    flip: npt.NDArray[np.bool_]
    interpolation: npt.NDArray[np.int32]
    input_size: tuple[int, int]

    @property
    def visible_size(self) -> IntArray:
        """Size of the part of the input that shows the image, (N, 2); the rest is padding."""
        return np.minimum(self.scaled_size - self.offset, self.input_size)

    @property
    def box_bounds(self) -> IntArray:
        """Size that boxes are clipped to, (N, 2): the smaller of the input and resized image."""
        return np.minimum(self.scaled_size, self.input_size)

    def source_window(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return start and end (y, x) of the window in source pixels, (N, 2); a flip swaps x."""
        # Multiply before dividing: integer products are exact, so a window at the edge ends on it.
        start = self.offset * self.source_size / self.scaled_size
        end = (self.offset + self.visible_size) * self.source_size / self.scaled_size
        width = self.source_size[:, 1]
        start[:, 1] = np.where(self.flip, width - start[:, 1], start[:, 1])
        end[:, 1] = np.where(self.flip, width - end[:, 1], end[:, 1])
        return start.astype(np.float32), end.astype(np.float32)


def random_geometry(
    config: InputConfig, sizes: Sizes, image_ids: IntArray, epochs: IntArray
) -> Geometry:
    """Draw the random geometry of N training images.

    Args:
        config: Input size, range of scales, interpolation and seed.
        sizes: (N, 2), widths and heights.
        image_ids: (N,)
        epochs: (N,)
    """
    draws = np.empty((len(sizes), _GEOMETRY_DRAWS))
    for row, image_id, epoch in zip(draws, image_ids.tolist(), epochs.tolist(), strict=True):
        sample_generator(config.seed, epoch, image_id).random(out=row)
    return geometry_from_draws(config, sizes, draws)


def geometry_from_draws(config: InputConfig, sizes: Sizes, draws: FloatArray) -> Geometry:
    """Compute the geometry from (N, 5) draws of [0, 1): flip, scale, y, x, interpolation."""
    low, high = config.scale
    factor = low + (high - low) * draws[:, 1]
    source_size, scaled_size, scale = _scale_to_fit(config, sizes, factor)
    slack = np.maximum(scaled_size - config.image_size, 0)
    if config.random_interpolation:
        choice = (draws[:, 4] * len(_RANDOM_INTERPOLATIONS)).astype(np.int32)
    else:
        choice = np.full(len(sizes), INTERPOLATIONS.index(config.interpolation), np.int32)
    return Geometry(
        source_size=source_size,
        scaled_size=scaled_size,
        offset=(slack * draws[:, 2:4]).astype(np.int64),
        scale=scale,
        flip=draws[:, 0] < 0.5,
        interpolation=choice,
        input_size=config.image_size,
    )


def letterbox_geometry(config: InputConfig, sizes: Sizes) -> Geometry:
    """Compute the geometry of N evaluation images, resized to fit; sizes are (width, height)."""
    source_size, scaled_size, scale = _scale_to_fit(config, sizes, np.ones(len(sizes)))
    return Geometry(
        source_size=source_size,
        scaled_size=scaled_size,
        offset=np.zeros_like(scaled_size),
        scale=scale,
        flip=np.zeros(len(sizes), np.bool_),
        interpolation=np.full(len(sizes), INTERPOLATIONS.index(config.interpolation), np.int32),
        input_size=config.image_size,
    )


def _scale_to_fit(
    config: InputConfig, sizes: Sizes, factor: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    source_size = np.asarray(sizes, np.int64)[:, ::-1]
    target = factor[:, None] * np.array(config.image_size, np.float64)
    scale = (target / source_size).min(axis=1)
    # Keep at least one row or column of a very long image.
    scaled_size = np.maximum((source_size * scale[:, None]).astype(np.int64), 1)
    return source_size, scaled_size, scale


def transform_boxes(
    geometry: Geometry, boxes: BoxArray, labels: IntArray, counts: IntArray
) -> tuple[BoxArray, IntArray]:
    """Transform the boxes of N images to pixels of the network's input.

    Boxes are flipped, scaled, shifted and clipped like their image; empty ones are dropped. At most
    the first 100 of each image are kept.

    Args:
        geometry: Geometry of the N images.
        boxes: (M, 4) float32, y1 x1 y2 x2 in source pixels, ordered by image.
        labels: (M,), from 1.
        counts: (N,), number of boxes of each image.

    Returns:
        Boxes (N, 100, 4) float32 and labels (N, 100) int64, padded with -1.
    """
    num_images = len(counts)
    owner = np.repeat(np.arange(num_images), counts)
    width = geometry.source_size[owner, 1].astype(np.float32)
    flip = geometry.flip[owner]
    moved = boxes.astype(np.float32)
    moved[:, 1] = np.where(flip, width - boxes[:, 3], boxes[:, 1])
    moved[:, 3] = np.where(flip, width - boxes[:, 1], boxes[:, 3])
    moved *= geometry.scale[owner, None].astype(np.float32)
    shift = np.tile(geometry.offset, 2)[owner]
    moved = (moved - shift).astype(np.float32)
    bounds = np.tile(geometry.box_bounds, 2)[owner].astype(np.float32)
    np.clip(moved, 0, bounds, out=moved)

    kept = (moved[:, :2] < moved[:, 2:]).all(axis=1)
    owner = owner[kept]
    kept_counts = np.bincount(owner, minlength=num_images)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(kept_counts) - kept_counts, kept_counts)
    first = column < MAX_BOXES
    owner, column = owner[first], column[first]
    out_boxes = np.full((num_images, MAX_BOXES, 4), PADDING, np.float32)
    out_labels = np.full((num_images, MAX_BOXES), PADDING, np.int64)
    out_boxes[owner, column] = moved[kept][first]
    out_labels[owner, column] = labels[kept][first]
    return out_boxes, out_labels
