"""Loaders in the form that Determined's trainer expects."""

from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset

from experiments.input import Batch, EvalLoader


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
