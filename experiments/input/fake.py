"""Generated batches, to measure a model without its input pipeline."""

from collections.abc import Iterator

import torch

from experiments.input.augmentation import MAX_BOXES, PADDING
from experiments.input.input_config import InputConfig
from experiments.input.loader import Labeler
from experiments.input.transfer import Batch, send

_BOXES_PER_IMAGE = 7  # COCO's mean


class FakeLoader:
    """Repeats one generated batch of noise with plausible boxes, which depends on the seed.

    Args:
        config: Configuration of the input pipeline that this replaces.
        batch_size: Samples N per batch of this rank.
        num_batches: Batches per pass.
        num_classes: Labels are from 1 to this number.
        labeler: As in TrainLoader; it is called once.
        endless: Whether to repeat without end, as in training.
    """

    def __init__(
        self,
        config: InputConfig,
        *,
        batch_size: int,
        num_batches: int,
        num_classes: int,
        labeler: Labeler | None = None,
        endless: bool = False,
    ) -> None:
        self._num_batches = num_batches
        self._endless = endless
        generator = torch.Generator().manual_seed(config.seed)
        height, width = config.image_size
        extent = torch.tensor([height, width])

        # Sides from a twentieth of the input's to all of it, at positions where the box fits.
        side = extent * (
            0.05 + 0.95 * torch.rand(batch_size, _BOXES_PER_IMAGE, 2, generator=generator) ** 2
        )
        corner = (extent - side) * torch.rand(side.shape, generator=generator)
        boxes = torch.full((batch_size, MAX_BOXES, 4), float(PADDING))
        boxes[:, :_BOXES_PER_IMAGE] = torch.cat([corner, corner + side], dim=-1)
        labels = torch.full((batch_size, MAX_BOXES), PADDING)
        labels[:, :_BOXES_PER_IMAGE] = torch.randint(
            1, num_classes + 1, (batch_size, _BOXES_PER_IMAGE), generator=generator
        )
        image = torch.randn(batch_size, 3, height, width, generator=generator)
        if config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        batch = {
            "image": image,
            "boxes": boxes,
            "labels": labels,
            "image_id": torch.arange(batch_size),
            "box_count": torch.full((batch_size,), _BOXES_PER_IMAGE),
            "source_scale": torch.ones(batch_size),
            "source_size": torch.tensor([height, width]).repeat(batch_size, 1),
        }
        if labeler is not None:
            batch.update(labeler(boxes, labels))
        self._batch = send(batch, config.torch_device)

    def __len__(self) -> int:
        """Batches per pass."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        count = 0
        while self._endless or count < self._num_batches:
            yield dict(self._batch)
            count += 1

    def close(self) -> None:
        """Do nothing; for compatibility with the other loaders."""
