"""An annotation file in COCO's format, read into arrays: for training, checks and evaluation.

COCO's train2017 file is 450 MB, most of it segmentation polygons, which box detection never uses.
They are cut out before parsing, which makes reading three times as fast and keeps it from
taking 5 GB of memory in every process.
"""

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from cocodata.errors import DatasetError
from cocodata.format.categories import Categories
from cocodata.format.layouts import DatasetFolder

_T = TypeVar("_T")

_LIST_VALUE = re.compile(rb"\s*:\s*\[")


@dataclass(frozen=True)
class Annotations:
    """The content of an annotation file, in the order of the file and without any filtering.

    Attributes:
        path: the file.
        image_ids: (N,).
        file_names: N names relative to the split's image folder.
        sizes: (N, 2) width and height in pixels.
        box_ids: (M,) ids of the annotations.
        box_image_ids: (M,).
        box_category_ids: (M,).
        boxes: (M, 4) float64 x, y, width, height in source pixels.
        areas: (M,) float64 areas of the objects in square pixels; NaN where the file has none.
        crowds: (M,) whether an annotation is a crowd.
        ignored: (M,) whether an annotation is a crowd or marked `ignore`.
        categories: the file's categories.
    """

    path: Path
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes: NDArray[np.int32]
    box_ids: NDArray[np.int64]
    box_image_ids: NDArray[np.int64]
    box_category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    categories: Categories


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file.

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
        return _from_tree(path, _parse(path, content))
    finally:
        if collecting:
            gc.enable()


def _parse(path: Path, content: bytes) -> Any:
    try:
        return orjson.loads(_without_polygons(content))
    except orjson.JSONDecodeError:
        pass
    try:  # Again unchanged, so that the position in the message is that in the file.
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DatasetError(
            f"{path}: not JSON ({error}). Was it downloaded or unpacked only partly?"
        ) from None


def _without_polygons(content: bytes) -> bytes:
    """Return the JSON text with every `"segmentation": [...]` replaced by `"segmentation":0`.

    A list of polygons contains only numbers and brackets, so it ends at the last bracket before the
    next quotation mark (of the next key) or brace (of the annotation's end). Run-length encoded
    masks are objects; they are few and stay.
    """
    key = b'"segmentation"'
    pieces: list[bytes] = []
    copied = position = 0
    while (found := content.find(key, position)) >= 0:
        position = found + len(key)
        value = _LIST_VALUE.match(content, position)
        if value is None:
            continue
        start = value.end() - 1
        quote = content.find(b'"', start)
        brace = content.find(b"}", start, quote if quote >= 0 else len(content))
        end = content.rfind(b"]", start, brace if brace >= 0 else quote) + 1
        if end > start:
            pieces += (content[copied:start], b"0")
            copied = position = end
    pieces.append(content[copied:])
    return b"".join(pieces)


def _from_tree(path: Path, tree: Any) -> Annotations:
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
    images, boxes = tree["images"], tree["annotations"]

    def of_images(what: str, read: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
        return _column(path, "images", images, what, read)

    def of_boxes(what: str, read: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
        return _column(path, "annotations", boxes, what, read)

    _column(path, "categories", tree["categories"], "id and name", _category)
    return Annotations(
        path=path,
        image_ids=np.array(of_images("id", lambda e: int(e["id"])), dtype=np.int64),
        file_names=of_images("file_name", _file_name),
        sizes=np.array(
            of_images("width and height", lambda e: (int(e["width"]), int(e["height"]))),
            dtype=np.int32,
        ).reshape(-1, 2),
        # Ids are only used in messages; some converters write none.
        box_ids=np.array(of_boxes("id", lambda e: int(e.get("id", -1))), dtype=np.int64),
        box_image_ids=np.array(of_boxes("image_id", lambda e: int(e["image_id"])), dtype=np.int64),
        box_category_ids=np.array(
            of_boxes("category_id", lambda e: int(e["category_id"])), dtype=np.int64
        ),
        boxes=_boxes(path, of_boxes("bbox", lambda e: e["bbox"])),
        areas=np.array(of_boxes("area", _area), dtype=np.float64),
        crowds=np.array(of_boxes("iscrowd", lambda e: bool(e.get("iscrowd"))), dtype=np.bool_),
        ignored=np.array(
            of_boxes("iscrowd", lambda e: bool(e.get("iscrowd") or e.get("ignore"))), dtype=np.bool_
        ),
        categories=Categories.from_coco(tree["categories"]),
    )


def _category(entry: Mapping[str, Any]) -> tuple[int, str]:
    return int(entry["id"]), str(entry["name"])


def _area(entry: Mapping[str, Any]) -> float:
    area = entry.get("area")  # Labelling tools often leave it out.
    return float("nan") if area is None else float(area)


def _file_name(entry: Mapping[str, Any]) -> str:
    name = entry["file_name"]
    if not isinstance(name, str):
        raise TypeError
    return name


def _column(
    path: Path,
    section: str,
    entries: Sequence[Mapping[str, Any]],
    what: str,
    read: Callable[[Mapping[str, Any]], _T],
) -> list[_T]:
    """Read one value from every entry; on failure name the first entry that lacks it."""
    try:
        return [read(entry) for entry in entries]
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    for index, entry in enumerate(entries):
        try:
            read(entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DatasetError(
                f"{path}: not COCO: {section}[{index}] has no usable {what}: {str(entry)[:200]}"
            ) from None
    raise AssertionError("an entry that failed before is now readable")


def _boxes(path: Path, rows: list[Any]) -> NDArray[np.float64]:
    try:
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
        if len(boxes) == len(rows):
            return boxes
    except (TypeError, ValueError):
        pass
    for index, row in enumerate(rows):
        if not (
            isinstance(row, list)
            and len(row) == 4
            and all(isinstance(value, int | float) for value in row)
        ):
            raise DatasetError(
                f"{path}: not COCO: annotations[{index}] has the bbox {str(row)[:100]}; "
                "it must be [x, y, width, height]"
            )
    raise AssertionError("boxes of four numbers each do not form an array")
