"""COCO categories and the class labels that a detector is trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cocodata.errors import DatasetError

_MAX_LISTED = 5  # Classes listed one by one in a message.


@dataclass(frozen=True)
class Categories:
    """Categories in ascending order of their ids, and their mapping to labels 1..num_classes.

    COCO's 80 categories have ids between 1 and 90, and published EfficientDet checkpoints use the
    id itself as the label (90 classes, ten of them never seen). Ids are therefore labels wherever
    this leaves no more than a third of the classes unused; any other set of ids is numbered
    1, 2, 3, ... in ascending order. The categories of a validation split, or of data that a
    checkpoint is used on, have the labels of those that the detector was trained on: `labelled_as`.

    Attributes:
        ids: category ids, ascending and unique.
        names: one name for each id.
        trained: the categories that a detector was trained on, if they give the labels, and each
            category's position among them.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    trained: "tuple[Categories, tuple[int, ...]] | None" = None

    @classmethod
    def from_coco(cls, entries: Sequence[Mapping[str, Any]], source: str) -> "Categories":
        """Build from the `categories` list of an annotation file.

        Args:
            entries: the list.
            source: the file, for messages.

        Raises:
            DatasetError: an id has two names.
        """
        names: dict[int, str] = {}
        for entry in entries:
            category_id, name = int(entry["id"]), str(entry["name"])
            if names.setdefault(category_id, name) != name:
                raise DatasetError(
                    f"{source}: the category id {category_id} has two names, "
                    f"{names[category_id]!r} and {name!r}; give each category its own id"
                )
        ids = tuple(sorted(names))
        return cls(ids=ids, names=tuple(names[category_id] for category_id in ids))

    def labelled_as(self, trained: "Categories", *, own: str, theirs: str) -> "Categories":
        """Return these categories with the labels that a detector has for their names.

        Upper and lower case and the number of spaces make no difference to a name.

        Args:
            trained: the categories that the detector is trained on.
            own: where these categories are from, for messages.
            theirs: where the detector's are from.

        Raises:
            DatasetError: which of the detector's a category is cannot be told with certainty.
        """
        mine = list(zip(self.ids, map(_key, self.names), strict=True))
        known = list(zip(trained.ids, map(_key, trained.names), strict=True))
        if mine == known and trained.trained is None:
            return replace(self, trained=None)
        if set(mine) <= set(known):  # Also if several have the same name.
            return Categories(self.ids, self.names, (trained, tuple(map(known.index, mine))))
        my_keys, known_keys = [key for _, key in mine], [key for _, key in known]
        unique = all(len(set(keys)) == len(keys) for keys in (my_keys, known_keys))
        if unique and set(my_keys) <= set(known_keys):
            positions = tuple(map(known_keys.index, my_keys))
            return Categories(self.ids, self.names, (trained, positions))
        two_names = [
            f"id {number} is {name!r} and {trained.names[trained.ids.index(number)]!r}"
            for number, name in zip(self.ids, self.names, strict=True)
            if number in trained.ids and (number, _key(name)) not in known
        ]
        only_here = [repr(n) for n in self.names if _key(n) not in known_keys]
        raise DatasetError(
            f"{own} has other classes than {theirs}: "
            f"{f'only the first has {_listed(only_here)}; ' if only_here else ''}"
            f"{_listed(two_names) if two_names else 'some names occur twice'}. They are "
            f"{_listed([repr(name) for name in self.names])} and "
            f"{_listed([repr(name) for name in trained.names])}. Give each class the same name, "
            "once, in both"
        )

    @property
    def of_detector(self) -> "Categories":
        """The categories that give the labels: those of the detector, which may have more."""
        return self if self.trained is None else self.trained[0].of_detector

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def ids_are_labels(self) -> bool:
        """Whether a category's label is its id."""
        if self.trained is not None:
            return False
        return bool(self.ids) and self.ids[0] >= 1 and self.ids[-1] <= 1.5 * len(self.ids)

    @property
    def num_classes(self) -> int:
        """Number of classes that a detector of these categories has."""
        if self.trained is not None:
            return self.trained[0].num_classes
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
        return int(self._labels[rank])

    def category_of(self, label: int) -> int:
        """Return the category id of a label.

        A label that no category uses gives an id that no category has: a detector may still predict
        it, and it then counts as a detection of an unknown category.

        Raises:
            IndexError: the label is not in 1..num_classes.
        """
        if not 1 <= label <= self.num_classes:
            raise IndexError(f"label {label} is not in 1..{self.num_classes}")
        return int(self._ids_of_labels[label - 1])

    def known(self, category_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the (N,) category ids belong to a category."""
        return np.asarray(np.isin(category_ids, self._id_array), dtype=np.bool_)

    def labels_of(self, category_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of (N,) category ids, all of which must be known."""
        return self._labels[np.searchsorted(self._id_array, category_ids)]

    def categories_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the category ids of (N,) labels, all of which must be in 1..num_classes."""
        return self._ids_of_labels[labels - 1]

    def name_of(self, label: int) -> str:
        """Return the name of a label's category, or its number where no category uses it."""
        category_id = self.category_of(label)
        rank = int(np.searchsorted(self._id_array, category_id))
        if rank < len(self.ids) and self.ids[rank] == category_id:
            return self.names[rank]
        return self.trained[0].name_of(label) if self.trained is not None else f"class {label}"

    @cached_property
    def _id_array(self) -> NDArray[np.int64]:
        return np.array(self.ids, dtype=np.int64)

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        """The label of each category."""
        if self.trained is not None:
            trained, positions = self.trained
            return trained._labels[list(positions)]
        if self.ids_are_labels:
            return self._id_array
        return np.arange(1, len(self.ids) + 1, dtype=np.int64)

    @cached_property
    def _ids_of_labels(self) -> NDArray[np.int64]:
        """The category id of each label from 1; of unused ones an id that no category has."""
        labels = np.arange(1, self.num_classes + 1, dtype=np.int64)
        unused = labels if self.ids_are_labels else min(0, *self.ids, 0) - labels
        ids = unused.copy()
        ids[self._labels - 1] = self._id_array
        return ids


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MAX_LISTED
    return ", ".join(texts[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
