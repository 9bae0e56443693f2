"""Where pixels and boxes go: the arithmetic of EfficientDet's training and evaluation input.

Training flips an image with probability 1/2, resizes it by a random factor ("scale jitter",
EfficientDet, section 4.1) and takes a window of the input's size at a random place; evaluation
resizes an image so that it just fits. Both put it at the top left of the input. What is random is a
pure function of (seed, epoch, image id). Arithmetic on sizes is in float64, so that truncation
gives the pixel that Python's ``int`` would give.
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
    """Random numbers of one image in one epoch: Philox keyed on (seed, epoch), counted by image id.

    ``stream`` keeps draws for different purposes apart, so that one of them can be switched on
    without changing the others.
    """
    bits = np.random.Philox(
        key=np.array([seed, epoch], np.uint64),
        counter=np.array([0, 0, stream, image_id], np.uint64),
    )
    return np.random.Generator(bits)


@dataclass(frozen=True)
class Geometry:
    """Where N images are put. Sizes and offsets are (height, width) and (y, x), in pixels.

    Attributes:
        source_size: (N, 2) int64, of the stored image.
        scaled_size: (N, 2) int64, after the resize.
        offset: (N, 2) int64, of the window in the resized image.
        scale: (N,) float64, input pixels per source pixel.
        flip: (N,) bool, mirrored left to right.
        interpolation: (N,) int32, index into INTERPOLATIONS.
        input_size: of the network's input.
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
        """(N, 2), the part of the input that shows the image; the rest is padding."""
        return np.minimum(self.scaled_size - self.offset, self.input_size)

    @property
    def box_bounds(self) -> IntArray:
        """(N, 2), what boxes are clipped to: the smaller of the input and the resized image."""
        return np.minimum(self.scaled_size, self.input_size)

    def source_window(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Start and end (y, x) of the window in source pixels, (N, 2); a flip swaps them in x."""
        # Multiplied first, since products are whole: a window up to the image's edge ends on it.
        start = self.offset * self.source_size / self.scaled_size
        end = (self.offset + self.visible_size) * self.source_size / self.scaled_size
        width = self.source_size[:, 1]
        start[:, 1] = np.where(self.flip, width - start[:, 1], start[:, 1])
        end[:, 1] = np.where(self.flip, width - end[:, 1], end[:, 1])
        return start.astype(np.float32), end.astype(np.float32)


def draw_geometry(
    config: InputConfig, sizes: Sizes, image_ids: IntArray, epochs: IntArray
) -> Geometry:
    """Training's random geometry of N images.

    Args:
        config: the input's size, the range of scales, the interpolation, the seed.
        sizes: (N, 2), width and height.
        image_ids: (N,)
        epochs: (N,)
    """
    draws = np.empty((len(sizes), _GEOMETRY_DRAWS))
    for row, image_id, epoch in zip(draws, image_ids.tolist(), epochs.tolist(), strict=True):
        sample_generator(config.seed, epoch, image_id).random(out=row)
    return random_geometry(config, sizes, draws)


def random_geometry(config: InputConfig, sizes: Sizes, draws: FloatArray) -> Geometry:
    """The geometry of (N, 5) draws from [0, 1): flip, scale, y and x offset, interpolation."""
    low, high = config.scale
    factor = low + (high - low) * draws[:, 1]
    source_size, scaled_size, scale = _scaled(config, sizes, factor)
    slack = np.maximum(scaled_size - config.image_size, 0)
    if config.draws_interpolation:
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
    """Evaluation's geometry of images of (N, 2) widths and heights: as large as can be."""
    source_size, scaled_size, scale = _scaled(config, sizes, np.ones(len(sizes)))
    return Geometry(
        source_size=source_size,
        scaled_size=scaled_size,
        offset=np.zeros_like(scaled_size),
        scale=scale,
        flip=np.zeros(len(sizes), np.bool_),
        interpolation=np.full(len(sizes), INTERPOLATIONS.index(config.interpolation), np.int32),
        input_size=config.image_size,
    )


def _scaled(
    config: InputConfig, sizes: Sizes, factor: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    source_size = np.asarray(sizes, np.int64)[:, ::-1]
    target = factor[:, None] * np.array(config.image_size, np.float64)
    scale = (target / source_size).min(axis=1)
    # A long, thin image may shrink to nothing: one row or column of it is kept.
    scaled_size = np.maximum((source_size * scale[:, None]).astype(np.int64), 1)
    return source_size, scaled_size, scale


def place_boxes(
    geometry: Geometry, boxes: BoxArray, labels: IntArray, counts: IntArray
) -> tuple[BoxArray, IntArray]:
    """Boxes of N images in the pixels of the network's input.

    Boxes are flipped, scaled, shifted and clipped with their image; one that nothing is left of is
    dropped. The first 100 left of an image are kept, in their order.

    Args:
        geometry: of the N images.
        boxes: (M, 4) float32, y1 x1 y2 x2 in source pixels, those of one image after those of
            another.
        labels: (M,), 1 and up.
        counts: (N,), boxes of each image.

    Returns:
        boxes (N, 100, 4) float32 and labels (N, 100) int64, padded with -1.
    """
    num_images = len(counts)
    owner = np.repeat(np.arange(num_images), counts)
    width = geometry.source_size[owner, 1].astype(np.float32)
    flip = geometry.flip[owner]
    placed = boxes.astype(np.float32)
    placed[:, 1] = np.where(flip, width - boxes[:, 3], boxes[:, 1])
    placed[:, 3] = np.where(flip, width - boxes[:, 1], boxes[:, 3])
    placed *= geometry.scale[owner, None].astype(np.float32)
    shift = np.tile(geometry.offset, 2)[owner]
    placed = (placed - shift).astype(np.float32)
    bounds = np.tile(geometry.box_bounds, 2)[owner].astype(np.float32)
    np.clip(placed, 0, bounds, out=placed)

    kept = (placed[:, :2] < placed[:, 2:]).all(axis=1)
    owner = owner[kept]
    kept_counts = np.bincount(owner, minlength=num_images)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(kept_counts) - kept_counts, kept_counts)
    first = place < MAX_BOXES
    owner, place = owner[first], place[first]
    out_boxes = np.full((num_images, MAX_BOXES, 4), PADDING, np.float32)
    out_labels = np.full((num_images, MAX_BOXES), PADDING, np.int64)
    out_boxes[owner, place] = placed[kept][first]
    out_labels[owner, place] = labels[kept][first]
    return out_boxes, out_labels
