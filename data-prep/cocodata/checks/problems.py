"""What can be wrong with a data set, and the message that lists it."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocodata.format.annotations import Annotations

_SHOWN = 50  # Problems of one kind listed one by one in a message.


class ProblemKind(StrEnum):
    """What can be wrong with a data set; the value is what messages call it."""

    ANNOTATIONS = "annotation file unusable"
    EMPTY = "empty split"
    MISSING = "image file missing"
    NOT_JPEG = "not a JPEG file"
    TRUNCATED = "truncated image file"
    SIZE = "image size differs from the annotations"
    DECODE = "image does not decode"
    BOX = "box outside its image or without area"
    CATEGORY = "unknown category"
    IDS = "contradicting ids"
    PATH = "file name leaves the image folder"
    CHANGED = "differs from the manifest"


_REMEDY = {
    ProblemKind.ANNOTATIONS: "download or unpack the annotations again",
    ProblemKind.EMPTY: "give a data set with images and boxes in both splits",
    ProblemKind.MISSING: "copy or unpack the images again",
    ProblemKind.NOT_JPEG: "convert the file to JPEG, or fetch it again if a download went wrong",
    ProblemKind.TRUNCATED: "fetch the file again",
    ProblemKind.SIZE: "use the image that was annotated, neither resized nor rotated",
    ProblemKind.DECODE: "fetch the file again",
    ProblemKind.BOX: "correct bbox, which is [x, y, width, height] in pixels of the image",
    ProblemKind.CATEGORY: "add the category to the file's list, or remove the annotation",
    ProblemKind.IDS: "make every image id unique and every annotation name one of them",
    ProblemKind.PATH: "name files relative to the split's image folder, without ..",
    ProblemKind.CHANGED: "restore the file; if the change is meant, write and verify the manifest "
    "anew with `make coco-manifest` and `make coco-verify`",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: what is wrong.
        where: the file or annotation.
        detail: more on it; may be empty.
        split: the split that it is in.
        image_id: the image that it makes unusable; None where it concerns the whole split or an
            annotation that belongs to no image.
    """

    kind: ProblemKind
    where: str
    detail: str
    split: str
    image_id: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}" if self.detail else self.where


@dataclass(frozen=True)
class CheckReport:
    """What the look at a data set found.

    Attributes:
        data: the data set folder.
        split_names: the splits looked at.
        problems: everything that is wrong.
        notes: what is worth knowing and no problem.
        held_against_manifest: whether a verified manifest spared the look into each file.
        annotations: the annotation files that had to be read, by split.
    """

    data: Path
    split_names: tuple[str, ...]
    problems: list[Problem]
    notes: list[str]
    held_against_manifest: bool
    annotations: dict[str, Annotations] = field(repr=False)

    def unusable(self, split: str) -> NDArray[np.int64]:
        """Return the ids, ascending, of the images of a split that cannot be used."""
        ids = {p.image_id for p in self.problems if p.split == split and p.image_id is not None}
        return np.array(sorted(ids), dtype=np.int64)

    def message(self) -> str:
        """Return one message that lists every problem with what to do about it."""
        lines = [f"{self.data}: {count(len(self.problems), 'problem')} found in the data set"]
        for kind in ProblemKind:
            of_kind = [problem for problem in self.problems if problem.kind is kind]
            if not of_kind:
                continue
            lines.append(f"{kind} ({len(of_kind)}); {_REMEDY[kind]}:")
            lines += [f"  {problem}" for problem in of_kind[:_SHOWN]]
            if len(of_kind) > _SHOWN:
                lines.append(f"  and {len(of_kind) - _SHOWN} more")
        return "\n".join(lines)


def count(number: int, what: str) -> str:
    """Return a number with its noun: 1 image, 2 images, 2 boxes."""
    plural = "boxes" if what == "box" else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"
