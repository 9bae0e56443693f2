"""An annotation file in COCO's format, read into arrays: for training, checks and evaluation.

This is the only reader, so that what one command accepts all others do. What tools write in other
ways than COCO is read if only one reading is possible, with a note if it might surprise.
"""

import gc
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cocodata.errors import DatasetError
from cocodata.format.categories import Categories
from cocodata.format.image_names import locate
from cocodata.format.images import ImageError, jpeg_size
from cocodata.format.json_text import parse, parse_exactly
from cocodata.format.layouts import DatasetFolder
from cocodata.format.values import (
    RoundedIdError,
    Section,
    read_areas,
    read_box_ids,
    read_boxes,
    read_category_ids,
    read_flags,
    read_image_ids,
    read_sizes,
)
from cocodata.text import count, printable

_EDGE_TOLERANCE = 2.0
"""Pixels that a box may reach over the edge by rounding, as boxes of COCO do."""


@dataclass(frozen=True)
class Annotations:
    """The content of an annotation file, in the order of the file and without any filtering.

    Attributes:
        path: the file.
        image_ids: (N,).
        file_names: N names relative to the split's image folder.
        sizes: (N, 2) width and height in pixels; 0 if neither the file nor the image tells.
        box_ids: (M,) ids of the annotations.
        box_image_ids: (M,).
        box_category_ids: (M,).
        boxes: (M, 4) float64 x, y, width, height in source pixels, within the image but for
            rounding unless they lie outside it completely.
        areas: (M,) float64 areas of the objects in square pixels; NaN where the file has none.
        crowds: (M,) whether an annotation is a crowd.
        ignored: (M,) whether an annotation is a crowd or marked `ignore`.
        categories: the file's categories.
        notes: what was read in another way than it is written.
        original_ids: the image id in the file by number, where that is not the number.
    """

    path: Path
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes: NDArray[np.int32]
    box_ids: NDArray[Any]
    box_image_ids: NDArray[np.int64]
    box_category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    categories: Categories
    notes: tuple[str, ...] = ()
    original_ids: Mapping[int, int | str] = field(default_factory=dict)


def read_annotations(
    path: Path, images: Path, *, listed: Collection[str] | None = None
) -> Annotations:
    """Read an annotation file.

    Args:
        path: the file.
        images: the folder of its images, which file names are looked up in, and which sizes are
            read from where the file has none.
        listed: the files that the folder should hold, relative to it, for looking up names where
            some may be missing; None to look into the folder.

    Raises:
        DatasetError: the file is missing, is not JSON, or is not in COCO's format; the message
            names the first entry that is wrong.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: annotation file missing. The data folder needs COCO's layout: "
            f"{DatasetFolder.annotation_path('<split>')} next to a folder "
            f"{DatasetFolder.image_folder_path('<split>')} with the images"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None

    # The parsed tree holds millions of objects and no cycle: garbage collection, which walks it
    # again and again while it grows, would take longer than parsing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        try:
            return _from_tree(path, parse(path, content), images, listed)
        except RoundedIdError:
            return _from_tree(path, parse_exactly(path, content), images, listed)
    except RoundedIdError:
        raise DatasetError(
            f"{path}: not COCO: an id is a number with a fraction or an exponent, of more digits "
            "than it can have. Write ids as whole numbers or as text"
        ) from None
    finally:
        if collecting:
            gc.enable()


def _from_tree(
    path: Path, tree: Any, image_folder: Path, listed: Collection[str] | None
) -> Annotations:
    if not isinstance(tree, dict):
        raise DatasetError(
            f"{path}: not COCO: the file contains a {type(tree).__name__}, not an object with the "
            "lists images, annotations and categories"
        )
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(tree.get(key), list)
    ]
    if missing:
        raise DatasetError(
            f"{path}: not COCO: no list named {' or '.join(missing)}. Box detection needs the "
            "instances files (not captions or keypoints) with images, annotations and categories"
        )
    images, boxes, categories = (
        Section(path, name, tree[name]) for name in ("images", "annotations", "categories")
    )
    category_ids = read_category_ids(categories, "id")
    names = categories.read(
        "id and name", lambda entry: printable(str(entry["name"])), "the name of the class"
    )
    ids = read_image_ids(images, boxes)
    file_names, name_notes = locate(image_folder, images.read("file_name", _file_name), listed)
    sizes, size_notes = _complete_sizes(image_folder, file_names, read_sizes(images))
    crowds = read_flags(boxes, "iscrowd")
    areas, unusable_areas = read_areas(boxes)
    area_notes = []
    if unusable_areas:
        area_notes.append(
            f"{count(unusable_areas, 'area')} unusable (NaN, negative or text): the box's is used"
        )
    box_category_ids = read_category_ids(boxes, "category_id")
    rows, box_notes = _within_images(read_boxes(boxes), ids.of_boxes, ids.of_images, sizes)
    return Annotations(
        path=path,
        image_ids=ids.of_images,
        file_names=file_names,
        sizes=sizes,
        box_ids=read_box_ids(boxes),
        box_image_ids=ids.of_boxes,
        box_category_ids=box_category_ids,
        boxes=rows,
        areas=areas,
        crowds=crowds,
        ignored=crowds | read_flags(boxes, "ignore"),
        categories=Categories.from_coco(
            [
                {"id": number, "name": name}
                for number, name in zip(category_ids.tolist(), names, strict=True)
            ],
            str(path),
        ),
        notes=(
            *([ids.note] if ids.note else []),
            *name_notes,
            *size_notes,
            *area_notes,
            *box_notes,
        ),
        original_ids=ids.originals,
    )


def _file_name(entry: Mapping[str, Any]) -> str:
    name = entry["file_name"] if entry.get("file_name") is not None else entry["coco_url"]
    if not isinstance(name, str):
        raise TypeError
    if not name:
        raise ValueError
    return name


def _complete_sizes(
    folder: Path, file_names: Sequence[str], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.int32], list[str]]:
    """Read the sizes that the annotations lack from the images' headers."""
    unknown = np.flatnonzero(sizes[:, 0] == 0).tolist()
    if not unknown:
        return sizes, []

    def size_of(row: int) -> tuple[int, int]:
        try:
            return jpeg_size(os.path.join(folder, file_names[row]))  # noqa: PTH118
        except (ImageError, OSError, ValueError):
            return 0, 0  # The check says what is wrong with the file.

    with ThreadPoolExecutor(16) as pool:
        sizes[unknown] = list(pool.map(size_of, unknown))
    found = int((sizes[unknown, 0] > 0).sum())
    if not found:
        return sizes, []
    return sizes, [f"{count(found, 'image')} without width and height, which the files give"]


def _within_images(
    boxes: NDArray[np.float64],
    box_image_ids: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
) -> tuple[NDArray[np.float64], list[str]]:
    """Clip boxes that reach over an edge by more than rounding."""
    if not len(image_ids) or not len(boxes):
        return boxes, []
    ids, order = np.unique(image_ids, return_index=True)
    owner = np.searchsorted(ids, box_image_ids).clip(max=len(ids) - 1)
    size = sizes[order][owner].astype(np.float64)
    low = boxes[:, :2]
    with np.errstate(invalid="ignore", over="ignore"):
        high = low + boxes[:, 2:]
        over = ((low < -_EDGE_TOLERANCE) | (high > size + _EDGE_TOLERANCE)).any(axis=1)
        over &= (boxes[:, 2:] > 0).all(axis=1) & (high > 0).all(axis=1) & (low < size).all(axis=1)
    over &= np.isfinite(boxes).all(axis=1) & (ids[owner] == box_image_ids) & (size[:, 0] > 0)
    rows = np.flatnonzero(over)
    if not len(rows):
        return boxes, []
    start = low[rows].clip(min=0)
    boxes[rows] = np.hstack([start, np.minimum(high[rows], size[rows]) - start])
    return boxes, [f"{count(len(rows), 'box')} over the edge of the image, clipped to it"]
