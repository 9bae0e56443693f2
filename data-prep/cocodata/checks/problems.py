"""What can be wrong with a data set, and the message that lists it."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocodata.format import images
from cocodata.format.annotations import Annotations
from cocodata.text import count

_MAX_LISTED = 50  # Problems of one kind listed one by one in a message.


class ProblemKind(StrEnum):
    """What can be wrong with a data set; the value is how messages name it."""

    ANNOTATIONS = "annotation file unusable"
    EMPTY = "empty split"
    MISSING = "image file missing"
    NOT_JPEG = "not a JPEG file"
    TRUNCATED = "truncated image file"
    TOO_LARGE = "image too large"
    SIZE = "image size differs from the annotations"
    DECODE = "image does not decode"
    BOX = "box outside its image or without area"
    CATEGORY = "unknown category"
    IDS = "contradictory ids"
    CLASSES = "classes differ between the splits"
    PATH = "file name points outside the image folder"
    ADDRESS = "address instead of a file name"
    NAME = "file name that is not UTF-8"
    CHANGED = "differs from the manifest"


_REMEDY = {
    ProblemKind.ANNOTATIONS: "correct the file, or export or download it again",
    ProblemKind.EMPTY: "use a data set with images and boxes in both splits",
    ProblemKind.MISSING: "copy or unpack the images again",
    ProblemKind.NOT_JPEG: "convert the file to JPEG, or download it again if a download failed",
    ProblemKind.TRUNCATED: "download the file again",
    ProblemKind.TOO_LARGE: "cut the image into tiles, and its annotations with it",
    ProblemKind.SIZE: "use the image that was annotated, neither resized nor rotated",
    ProblemKind.DECODE: "download the file again",
    ProblemKind.BOX: "correct bbox, which is [x, y, width, height] in pixels of the image",
    ProblemKind.CATEGORY: "add the category to the file's list, or remove the annotation",
    ProblemKind.IDS: "make every image id unique, list every file once, and let every annotation "
    "name one of the ids",
    ProblemKind.CLASSES: "use one list of categories in both annotation files",
    ProblemKind.PATH: "use file names relative to the split's image folder, without ..",
    ProblemKind.ADDRESS: "download the image into the split's image folder; the end of the address "
    "is then its file name",
    ProblemKind.NAME: "rename the file in UTF-8 (`convmv -t utf8` can), and its file_name with it",
    ProblemKind.CHANGED: "restore the file; if the change is intended, write and verify a new "
    "manifest with `make coco-manifest` and `make coco-verify`",
}

_KIND_OF_IMAGE_ERROR: dict[type[images.ImageError], ProblemKind] = {
    images.MissingImageError: ProblemKind.MISSING,
    images.UnreadableImageError: ProblemKind.MISSING,
    images.ImageFormatError: ProblemKind.NOT_JPEG,
    images.TruncatedJpegError: ProblemKind.TRUNCATED,
    images.ImageTooLargeError: ProblemKind.TOO_LARGE,
    images.ImageSizeError: ProblemKind.SIZE,
    images.DecodingError: ProblemKind.DECODE,
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: what is wrong.
        where: the file or annotation.
        detail: more about it; may be empty.
        split: the split that it is in.
        image_id: the image that it makes unusable; None if it concerns the whole split or an
            annotation that belongs to no image.
    """

    kind: ProblemKind
    where: str
    detail: str
    split: str
    image_id: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}" if self.detail else self.where


def image_problem(error: images.ImageError, path: str, split: str, image_id: int) -> Problem:
    """Return the problem that an image file has, from the error of checking it."""
    # That a file is missing is said by the heading.
    detail = "" if isinstance(error, images.MissingImageError) else str(error)
    return Problem(_KIND_OF_IMAGE_ERROR[type(error)], path, detail, split, image_id)


@dataclass(frozen=True)
class CheckReport:
    """What a check of a data set found.

    Attributes:
        data: the data set folder.
        split_names: the splits that were checked.
        problems: everything that is wrong.
        notes: what is worth knowing but not a problem.
        used_manifest: whether a verified manifest made opening each file unnecessary.
        annotations: the annotation files that had to be read, by split.
    """

    data: Path
    split_names: tuple[str, ...]
    problems: list[Problem]
    notes: list[str]
    used_manifest: bool
    annotations: dict[str, Annotations] = field(repr=False)

    def unusable(self, split: str) -> NDArray[np.int64]:
        """Return the ids, ascending, of the images of a split that cannot be used."""
        ids = {p.image_id for p in self.problems if p.split == split and p.image_id is not None}
        return np.array(sorted(ids), dtype=np.int64)

    def message(self) -> str:
        """Return one message that lists every problem and how to fix it."""
        lines = [f"{self.data}: {count(len(self.problems), 'problem')} found in the data set"]
        for kind in ProblemKind:
            of_kind = [problem for problem in self.problems if problem.kind is kind]
            if not of_kind:
                continue
            lines.append(f"{kind} ({len(of_kind)}); {_REMEDY[kind]}:")
            lines += [f"  {problem}" for problem in of_kind[:_MAX_LISTED]]
            if len(of_kind) > _MAX_LISTED:
                lines.append(f"  and {len(of_kind) - _MAX_LISTED} more")
        return "\n".join(lines)
