"""Loaders in the form that Determined's trainer expects."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from experiments.input import EvalLoader, FakeLoader, TrainLoader

Batch = dict[str, Tensor]


class RankShard(IterableDataset):
    """One rank's evaluation batches, for the torch DataLoader that Determined requires.

    It also requires at least one batch per rank: a rank without images gets an empty one.
    """

    def __init__(self, loader: EvalLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        if len(self._loader) == 0:
            yield {"image": torch.empty(0, 3, 0, 0)}
        yield from self._loader


class PinnedBatches:
    """Batches in page-locked memory, from which a GPU can copy them while it computes."""

    def __init__(self, loader: TrainLoader | FakeLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield {name: tensor.pin_memory() for name, tensor in batch.items()}
