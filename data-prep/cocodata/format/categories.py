"""COCO categories and the class labels that a detector is trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Categories:
    """Categories in ascending order of their ids, and their mapping to labels 1..num_classes.

    COCO's 80 categories have ids between 1 and 90, and published EfficientDet checkpoints use the
    id itself as the label (90 classes, ten of them never seen). Ids are therefore labels wherever
    this leaves no more than a third of the classes unused; any other set of ids is numbered
    1, 2, 3, ... in ascending order.

    Attributes:
        ids: category ids, ascending and unique.
        names: one name for each id.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def from_coco(cls, entries: Sequence[Mapping[str, Any]]) -> "Categories":
        """Build from the `categories` list of an annotation file."""
        ordered = sorted(entries, key=lambda entry: int(entry["id"]))
        return cls(
            ids=tuple(int(entry["id"]) for entry in ordered),
            names=tuple(str(entry["name"]) for entry in ordered),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def ids_are_labels(self) -> bool:
        """Whether a category's label is its id."""
        return bool(self.ids) and self.ids[0] >= 1 and self.ids[-1] <= 1.5 * len(self.ids)

    @property
    def num_classes(self) -> int:
        """Number of classes that a detector of these categories has."""
        if self.ids_are_labels:
            return self.ids[-1]
        return len(self.ids)

    def label_of(self, category_id: int) -> int:
        """Return the label, 1..num_classes, of a category id.

        Raises:
            KeyError: there is no such category.
        """
        rank = int(np.searchsorted(self._id_array, category_id))
        if rank == len(self.ids) or self.ids[rank] != category_id:
            raise KeyError(f"no category has the id {category_id}; there are {list(self.ids)}")
        return category_id if self.ids_are_labels else rank + 1

    def category_of(self, label: int) -> int:
        """Return the category id of a label.

        Where ids are labels this is the label itself, even if no category uses it: a detector may
        still predict it, and it then counts as a detection of an unknown category.

        Raises:
            IndexError: the label is not in 1..num_classes.
        """
        if not 1 <= label <= self.num_classes:
            raise IndexError(f"label {label} is not in 1..{self.num_classes}")
        return label if self.ids_are_labels else self.ids[label - 1]

    def known(self, category_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the (N,) category ids belong to a category."""
        return np.asarray(np.isin(category_ids, self._id_array), dtype=np.bool_)

    def labels_of(self, category_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of (N,) category ids, all of which must be known."""
        if self.ids_are_labels:
            return category_ids.astype(np.int64)
        return np.searchsorted(self._id_array, category_ids).astype(np.int64) + 1

    def categories_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the category ids of (N,) labels, all of which must be in 1..num_classes."""
        if self.ids_are_labels:
            return labels.astype(np.int64)
        return self._id_array[labels - 1]

    def name_of(self, label: int) -> str:
        """Return the name of a label's category, or its number where no category uses it."""
        category_id = self.category_of(label)
        rank = int(np.searchsorted(self._id_array, category_id))
        if rank < len(self.ids) and self.ids[rank] == category_id:
            return self.names[rank]
        return f"class {label}"

    @cached_property
    def _id_array(self) -> NDArray[np.int64]:
        return np.array(self.ids, dtype=np.int64)
