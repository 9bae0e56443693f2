"""Loaders in the form that Determined's trainer takes them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from experiments.input import EvalLoader, FakeLoader, TrainLoader

Batch = dict[str, Tensor]


class RankShard(IterableDataset):
    """One rank's evaluation batches, for the torch DataLoader that Determined insists on.

    It also insists on at least one batch a rank; one without images gets a batch of none.
    """

    def __init__(self, loader: EvalLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        if len(self._loader) == 0:
            yield {"image": torch.empty(0, 3, 0, 0)}
        yield from self._loader


class PinnedBatches:
    """Batches copied into page-locked memory, from where a GPU fetches them while it computes."""

    def __init__(self, loader: TrainLoader | FakeLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield {name: tensor.pin_memory() for name, tensor in batch.items()}
