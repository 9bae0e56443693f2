"""The values in annotation files, as they are meant and as tools write them.

Whole columns are read at once while all values have COCO's own types. Otherwise each is read by
itself: numbers may be text, an area a list of one number.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cocodata.errors import DatasetError
from cocodata.text import count, printable

_T = TypeVar("_T")

_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_LARGEST = np.iinfo(np.int64).max
_EXACT = 2**53  # From here on a float may stand for several integers.

_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


class RoundedIdError(Exception):
    """An id has more than 64 bits, and the parser has rounded it."""


@dataclass(frozen=True)
class Section:
    """One of the lists of an annotation file, for reading one value from every entry."""

    path: Path
    name: str
    entries: Sequence[Mapping[str, Any]]

    def values(self, key: str, expected: str) -> list[Any]:
        """Return the values of a key that every entry must have."""
        return self.read(key, itemgetter(key), expected)

    def optional(self, key: str) -> list[Any]:
        """Return the values of a key that entries may lack; None where one does."""
        try:
            return [entry.get(key) for entry in self.entries]
        except AttributeError:
            return self.read(key, lambda entry: entry.get(key), "an object")

    def read(
        self, what: str, read: Callable[[Mapping[str, Any]], _T], expected: str = ""
    ) -> list[_T]:
        """Read one value from every entry; on failure name the first entry that lacks it."""
        try:
            return [read(entry) for entry in self.entries]
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        for index, entry in enumerate(self.entries):
            try:
                read(entry)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise DatasetError(
                    f"{self.path}: not COCO: {self.name}[{index}] has no usable {what}"
                    f"{f' (expected: {expected})' if expected else ''}: "
                    f"{printable(str(entry)[:200])}"
                ) from None
        raise AssertionError("an entry that failed before is now readable")


@dataclass(frozen=True)
class ImageIds:
    """Image ids as numbers.

    Attributes:
        of_images: (N,).
        of_boxes: (M,) the image of each annotation.
        originals: the id in the file by number, for those that are something else there.
        note: how ids that cannot be used as numbers were numbered; None if all can.
    """

    of_images: NDArray[np.int64]
    of_boxes: NDArray[np.int64]
    originals: dict[int, int | str]
    note: str | None = None


def read_image_ids(images: Section, boxes: Section) -> ImageIds:
    """Read the ids of images, and which image each annotation belongs to.

    Text that is a number is that number, as long as all ids stay different. Other text and numbers
    of more than 63 bits are numbered 1, 2, 3, ... in their order.

    Raises:
        DatasetError: an id is neither a whole number nor text.
        RoundedIdError: an id was rounded; parse the file again with all digits.
    """
    expected = "a whole number or text"
    raw, of_boxes = images.values("id", expected), boxes.values("image_id", expected)
    numbers, box_numbers = _plain(raw), _plain(of_boxes)
    if numbers is not None and box_numbers is not None:
        return ImageIds(numbers, box_numbers, {})

    keys = images.read("id", lambda entry: _id(entry["id"]), expected)
    box_keys = boxes.read("image_id", lambda entry: _id(entry["image_id"]), expected)
    numeric = [_as_number(key) for key in keys]
    if len(set(numeric)) < len(set(map(str, keys))):  # Such as "1" and "01".
        numeric, of_boxes = [str(key) for key in keys], [str(key) for key in box_keys]
    else:
        of_boxes = [_as_number(key) for key in box_keys]
    if all(_fits(key) for key in (*numeric, *of_boxes)):
        originals: dict[int, int | str] = {
            int(number): key
            for number, key in zip(numeric, keys, strict=True)
            if isinstance(key, str)
        }
        return ImageIds(np.array(numeric, np.int64), np.array(of_boxes, np.int64), originals)

    ordered = _in_order(set(numeric))
    ordered += _in_order(set(of_boxes) - set(numeric))
    rank = {key: number for number, key in enumerate(ordered, start=1)}
    unusual = next((key for key in numeric if not _fits(key)), numeric[0] if numeric else "")
    reason = "text" if isinstance(unusual, str) else "more than 63 bits"
    shown = {numeric[i]: keys[i] for i in range(len(keys))}
    return ImageIds(
        np.array([rank[key] for key in numeric], np.int64),
        np.array([rank[key] for key in of_boxes], np.int64),
        {number: shown.get(key, key) for key, number in rank.items()},
        f"image ids that are {reason}, such as {unusual!r}: the {count(len(numeric), 'image')} "
        "are numbered in the order of their ids",
    )


def read_category_ids(section: Section, key: str) -> NDArray[np.int64]:
    """Read the ids of categories.

    Raises:
        DatasetError: an id is not a whole number of up to 63 bits.
        RoundedIdError: as in `read_image_ids`.
    """
    what = "id and name" if key == "id" else key
    expected = "a whole number below 2^63; number the categories, in categories and annotations"
    numbers = _plain(section.values(key, expected) if key != "id" else section.optional(key))
    if numbers is not None:
        return numbers
    return np.array(section.read(what, lambda e: _whole(e[key]), expected), np.int64)


def read_box_ids(section: Section) -> NDArray[Any]:
    """Read the ids of annotations, which are only used in messages; -1 where there is none."""
    raw = section.read("id", lambda entry: entry.get("id", -1), "an object")
    numbers = _plain(raw)
    if numbers is not None:
        return numbers
    ids = np.empty(len(raw), dtype=object)
    ids[:] = [each if isinstance(each, int) else printable(str(each)) for each in raw]
    return ids


def read_sizes(section: Section) -> NDArray[np.int32]:
    """Read (N, 2) widths and heights; 0 where the file has none."""
    columns = []
    for key in ("width", "height"):
        numbers = _plain(section.optional(key))
        if numbers is None or (len(numbers) and numbers.max() > np.iinfo(np.int32).max):
            numbers = np.array(
                section.read("width and height", partial(_pixels, key), "whole numbers"), np.int64
            )
        columns.append(numbers.clip(min=0))
    sizes = np.stack(columns, axis=1).astype(np.int32)
    sizes[(sizes == 0).any(axis=1)] = 0
    return sizes


def read_areas(section: Section) -> tuple[NDArray[np.float64], int]:
    """Read (M,) areas, NaN where there is none, and count those that are not usable numbers."""
    raw = section.optional("area")
    areas: NDArray[np.float64] | None = None
    if _types(raw) <= {int, float, type(None)}:
        with suppress(OverflowError):
            areas = np.array(raw, np.float64)
    if areas is None:
        areas = np.array([_area(value) for value in raw], np.float64)
    areas[~(np.isfinite(areas) & (areas >= 0))] = np.nan
    unusable = np.isnan(areas)
    return areas, sum(raw[row] is not None for row in np.flatnonzero(unusable).tolist())


def read_flags(section: Section, key: str) -> NDArray[np.bool_]:
    """Read (M,) marks such as iscrowd, which are off where there is none."""
    raw = section.optional(key)
    if not _types(raw) <= {int, bool, type(None)}:
        raw = section.read(key, lambda entry: _flag(entry.get(key)), "0 or 1")
    return np.array([bool(value) for value in raw], np.bool_)


def read_boxes(section: Section) -> NDArray[np.float64]:
    """Read (M, 4) boxes; NaN where a box is empty."""
    rows = section.values("bbox", "[x, y, width, height]")
    if not rows:
        return np.zeros((0, 4))
    try:
        boxes = np.array(rows, dtype=np.float64)
        if boxes.shape == (len(rows), 4):
            return boxes
    except (TypeError, ValueError, OverflowError):
        pass
    return np.array([_box(section, index, row) for index, row in enumerate(rows)], np.float64)


def _box(section: Section, index: int, row: Any) -> list[float]:
    if row is None or row in ("", []):
        return [math.nan] * 4
    try:
        if isinstance(row, list) and len(row) == 4:
            return [math.nan if value is None else float(value) for value in row]
    except (TypeError, ValueError, OverflowError):
        pass
    raise DatasetError(
        f"{section.path}: not COCO: {section.name}[{index}] has the bbox "
        f"{printable(str(row)[:100])}; it must be [x, y, width, height]"
    )


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _plain(values: Sequence[Any]) -> NDArray[np.int64] | None:
    """Return values as an array if all are integers of up to 63 bits."""
    if not _types(values) <= {int}:
        return None
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return None


def _id(value: Any) -> int | str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, float):
        if abs(value) >= _EXACT:
            raise RoundedIdError
        if not value.is_integer():
            raise ValueError
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError


def _as_number(key: int | str) -> int | str:
    return int(key) if isinstance(key, str) and _INTEGER.fullmatch(key) else key


def _fits(key: int | str) -> bool:
    return isinstance(key, int) and -_LARGEST <= key <= _LARGEST


def _in_order(keys: set[int | str]) -> list[int | str]:
    if all(isinstance(key, int) for key in keys):
        return sorted(keys)
    return sorted(keys, key=str)


def _whole(value: Any) -> int:
    number = _as_number(_id(value))
    if not isinstance(number, int) or not _fits(number):
        raise ValueError
    return number


def _pixels(key: str, entry: Mapping[str, Any]) -> int:
    value = entry.get(key)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return 0
    number = _whole(value)
    if number > np.iinfo(np.int32).max:
        raise ValueError
    return number


def _area(value: Any) -> float:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _flag(value: Any) -> bool:
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS[value.strip().lower()]
    if isinstance(value, int | float) and not math.isnan(value):
        return bool(value)
    raise TypeError
