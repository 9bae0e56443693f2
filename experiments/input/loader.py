"""Loaders of batches for training and evaluation; a batch is a dictionary of tensors.

- image: (N, 3, H, W) float32, normalised
- boxes: (N, 100, 4) float32, y1 x1 y2 x2 in pixels of the input, padded with -1
- labels: (N, 100) int64, from 1, padded with -1
- box_count: (N,) int64, number of boxes, on the CPU
- image_id: (N,) int64, from the data set, on the CPU
- source_scale: (N,) float32, source pixels per input pixel, the inverse of `Geometry.scale`
- source_size: (N, 2) int64, height and width of the source image in pixels
- the labeler's tensors, if there is a labeler

Those that are not on the CPU are on the configuration's device. All own their memory: they stay
valid after the next batch is loaded and after the loader is closed. On a GPU they belong to the
stream that was current when the batch was loaded, and loading one does not wait for the GPU.
"""

import math
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cocodata import Split
from experiments.input.augmentation import (
    Geometry,
    IntArray,
    letterbox_geometry,
    random_geometry,
    transform_boxes,
)
from experiments.input.erasing import Patch, draw_erasures, draw_patches, erasable_size
from experiments.input.global_batches import GlobalBatchSampler, shard
from experiments.input.input_config import InputConfig
from experiments.input.stream import BatchPlan, DaliStream
from experiments.input.transfer import Batch

# Boxes (N, 100, 4) and labels (N, 100) -> additional tensors of the batch, by name.
Labeler = Callable[[Tensor, Tensor], dict[str, Tensor]]


class TrainLoader(Iterator[Batch]):
    """One rank's share of an endless sequence of batches.

    Batch k is a pure function of the seed, the global batch size and k, and each sample's
    augmentation is a function of the seed, its epoch and its image id. So a run that starts at
    batch k sees the same batches as one that has trained up to there, on any number of ranks.

    Args:
        split: The images and boxes to train on.
        config: Configuration of the input pipeline.
        global_batch_size: Samples per batch over all ranks.
        rank: Rank of this process.
        num_ranks: Number of ranks, which must divide the global batch size.
        start_batch: Number of the first batch.
        labeler: Computes training targets from boxes and labels, ahead of time, on the CPU and in
            another thread; optional.

    Raises:
        SampleError: (when a batch is loaded) A file has become unusable. The loader is closed then.
    """

    def __init__(
        self,
        split: Split,
        config: InputConfig,
        *,
        global_batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
        start_batch: int = 0,
        labeler: Labeler | None = None,
    ) -> None:
        self._split = split
        self._config = config
        self._sampler = GlobalBatchSampler(len(split), config.seed, global_batch_size)
        self._sampler.batch(start_batch, rank, num_ranks)  # validates the arguments
        self._rank = rank
        self._num_ranks = num_ranks
        self._labeler = labeler
        self._stream = DaliStream(
            config, self._plan_batch, max_batch_size=global_batch_size // num_ranks
        )
        self._batches = self._stream.batches(start_batch)

    def __len__(self) -> int:
        """Batches per epoch; the last one may continue with the next epoch."""
        return self._sampler.batches_per_epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._stream.closed:
            raise ValueError("the loader is closed: create a new one")
        return next(self._batches)

    def close(self) -> None:
        """Stop the threads and free the memory; loaded batches stay valid."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _plan_batch(self, k: int) -> BatchPlan:
        epochs, indices = self._sampler.batch(k, self._rank, self._num_ranks)
        split, config = self._split, self._config
        sizes, image_ids = split.sizes[indices], split.image_ids[indices]
        geometry = random_geometry(config, sizes, image_ids, epochs)
        erasable = erasable_size(sizes, geometry.scale, config.image_size)
        erasures = draw_erasures(config, erasable, image_ids, epochs)
        return _make_plan(
            split,
            indices,
            geometry,
            epochs=epochs.tolist(),
            patches=draw_patches(erasures, config.remode, pin=config.device == "gpu"),
            labeler=self._labeler,
        )


class EvalLoader:
    """One rank's share of a split, in repeatable passes; each image is on exactly one rank.

    The last batch of a pass may be smaller, and a rank may have no batches at all.

    Args:
        split: The images to evaluate on.
        config: Configuration of the input pipeline; its interpolation cannot be random.
        batch_size: Samples per batch of this rank.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        labeler: As in TrainLoader.

    Raises:
        SampleError: (when a batch is loaded) A file has become unusable. The loader is closed then.
    """

    def __init__(
        self,
        split: Split,
        config: InputConfig,
        *,
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
        labeler: Labeler | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        if config.random_interpolation:
            raise ValueError(
                "interpolation is 'random': for evaluation it must be bilinear, bicubic or lanczos"
            )
        self._split = split
        self._config = config
        self._batch_size = batch_size
        self._indices = shard(len(split), rank, num_ranks)
        self._labeler = labeler
        self._stream = DaliStream(config, self._plan_batch, max_batch_size=batch_size)

    def __len__(self) -> int:
        """Batches of this rank per pass."""
        return math.ceil(len(self._indices) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Start a new pass; an unfinished one is abandoned."""
        return self._stream.batches(0, len(self))

    def close(self) -> None:
        """Stop the threads and free the memory; loaded batches stay valid."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _plan_batch(self, k: int) -> BatchPlan:
        indices = self._indices[k * self._batch_size : (k + 1) * self._batch_size]
        geometry = letterbox_geometry(self._config, self._split.sizes[indices])
        return _make_plan(self._split, indices, geometry, epochs=None, labeler=self._labeler)


def _make_plan(
    split: Split,
    indices: IntArray,
    geometry: Geometry,
    *,
    epochs: list[int] | None,
    labeler: Labeler | None,
    patches: list[Patch] | None = None,
) -> BatchPlan:
    """Plan a batch: everything but its pixels."""
    first = split.box_offsets[indices]
    counts = split.box_offsets[indices + 1] - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(first, counts) + within
    boxes, labels = transform_boxes(geometry, split.boxes[rows], split.labels[rows], counts)
    tensors = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
        "box_count": torch.from_numpy((labels > 0).sum(axis=1)),
        "image_id": torch.from_numpy(split.image_ids[indices]),
        "source_scale": torch.from_numpy((1.0 / geometry.scale).astype(np.float32)),
        "source_size": torch.from_numpy(np.ascontiguousarray(geometry.source_size)),
    }
    if labeler is not None:
        tensors.update(labeler(tensors["boxes"], tensors["labels"]))
    return BatchPlan(
        paths=[split.image_dir / split.file_names[index] for index in indices.tolist()],
        sizes=split.sizes[indices],
        epochs=epochs,
        geometry=geometry,
        patches=patches or [],
        tensors=tensors,
    )
