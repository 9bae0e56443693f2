"""One split of a data set, as training and evaluation use it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocodata.errors import DatasetError
from cocodata.format.annotations import Annotations, read_annotations
from cocodata.format.categories import Categories
from cocodata.format.layouts import DatasetFolder


@dataclass(frozen=True)
class Split:
    """The images of a split and the boxes to train on.

    Crowds, annotations marked `ignore` and boxes less than a pixel wide or high are left out.
    Images without boxes are kept: they teach what background looks like.

    Attributes:
        name: name of the split, such as train2017.
        image_dir: folder that the file names are relative to.
        annotation_file: the file that this was read from.
        image_ids: (N,) ascending.
        file_names: N names.
        sizes: (N, 2) width and height in pixels.
        box_offsets: (N + 1,) image i has the boxes box_offsets[i] to box_offsets[i + 1].
        boxes: (M, 4) float32 y1, x1, y2, x2 in source pixels.
        labels: (M,) labels in 1..categories.num_classes.
        categories: the categories and their labels.
        original_ids: the image id in the annotation file by number, where that is not the number.
    """

    name: str
    image_dir: Path
    annotation_file: Path
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes: NDArray[np.int32]
    box_offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    categories: Categories
    original_ids: Mapping[int, int | str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_ids)

    def targets(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the (n, 4) boxes and (n,) labels of the image at a position."""
        rows = slice(int(self.box_offsets[index]), int(self.box_offsets[index + 1]))
        return self.boxes[rows], self.labels[rows]

    def select(self, keep: NDArray[np.bool_]) -> "Split":
        """Return the split with only the images that the (N,) mask keeps."""
        if keep.shape != (len(self),):
            raise ValueError(f"the mask has shape {keep.shape}, the split has {len(self)} images")
        counts = np.diff(self.box_offsets)
        keep_boxes = np.repeat(keep, counts)
        return Split(
            name=self.name,
            image_dir=self.image_dir,
            annotation_file=self.annotation_file,
            image_ids=self.image_ids[keep],
            file_names=[
                name for name, kept in zip(self.file_names, keep.tolist(), strict=True) if kept
            ],
            sizes=self.sizes[keep],
            box_offsets=_offsets(counts[keep]),
            boxes=self.boxes[keep_boxes],
            labels=self.labels[keep_boxes],
            categories=self.categories,
            original_ids=self.original_ids,
        )

    def labelled_as(self, trained: Categories, source: str) -> "Split":
        """Return the split with the labels that a detector has for its classes' names.

        Args:
            trained: the categories that the detector is trained on.
            source: where they are from, for messages.

        Raises:
            DatasetError: see `Categories.labelled_as`.
        """
        own = self.categories
        categories = own.labelled_as(trained, own=str(self.annotation_file), theirs=source)
        labels = categories.labels_of(own.categories_of(self.labels))
        return replace(self, labels=labels, categories=categories)


def load_split(data: Path, split: str, *, strict: bool = True) -> Split:
    """Read one split of a data set folder.

    Args:
        data: the data set folder.
        split: name of the split.
        strict: whether ids that contradict each other are an error; if not, boxes of unknown
            images or categories are left out, and of several images with one id the first counts.

    Raises:
        DatasetError: the annotation file is missing or not in COCO's format, or `strict` is set and
            its ids contradict each other (an image id twice, or boxes of unknown images or
            categories).
    """
    folder = DatasetFolder(data)
    annotations = read_annotations(folder.annotation_file(split), folder.image_folder(split))
    repeated = np.unique(annotations.image_ids).size != annotations.image_ids.size
    no_image = ~np.isin(annotations.box_image_ids, annotations.image_ids)
    no_category = ~annotations.categories.known(annotations.box_category_ids)
    if strict and (repeated or no_image.any() or no_category.any()):
        raise DatasetError(
            f"{annotations.path}: ids contradict each other: image ids "
            f"{'repeat' if repeated else 'are unique'}, {no_image.sum()} boxes have unknown "
            f"images, {no_category.sum()} have unknown categories. `make coco-check "
            f"DATA={data}` lists them"
        )
    return build_split(data, split, annotations)


def build_split(data: Path, split: str, annotations: Annotations) -> Split:
    """Arrange annotations by image; boxes of unknown images or categories are left out.

    Of several images with one id the first counts.
    """
    image_ids, order = np.unique(annotations.image_ids, return_index=True)
    widths, heights = annotations.boxes[:, 2], annotations.boxes[:, 3]
    usable = np.flatnonzero(
        ~annotations.ignored
        & (widths >= 1)
        & (heights >= 1)
        & np.isin(annotations.box_image_ids, image_ids)
        & annotations.categories.known(annotations.box_category_ids)
    )
    position = np.searchsorted(image_ids, annotations.box_image_ids[usable])
    # Stable: the boxes of an image keep the file's order.
    by_image = np.argsort(position, kind="stable")
    usable, position = usable[by_image], position[by_image]
    x, y, width, height = annotations.boxes[usable].T
    return Split(
        name=split,
        image_dir=DatasetFolder(data).image_folder(split),
        annotation_file=annotations.path,
        image_ids=image_ids,
        file_names=[annotations.file_names[i] for i in order.tolist()],
        sizes=annotations.sizes[order],
        box_offsets=_offsets(np.bincount(position, minlength=len(image_ids))),
        boxes=np.stack([y, x, y + height, x + width], axis=1).astype(np.float32),
        labels=annotations.categories.labels_of(annotations.box_category_ids[usable]),
        categories=annotations.categories,
        original_ids=annotations.original_ids,
    )


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
