"""Where the files of a data set are: the only place that spells out COCO's folder layout."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cocodata.errors import DatasetError
from cocodata.text import is_utf8, printable

_ANNOTATIONS = "annotations"
_ANNOTATION_FILE = "instances_{}.json"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DatasetFolder:
    """A data set folder in COCO's layout: annotations/instances_<split>.json, <split>/, a manifest.

    Methods named `..._path` give paths relative to the folder, with forward slashes, as messages
    and manifests use them. The others give paths that can be opened.
    """

    root: Path

    @property
    def manifest_file(self) -> Path:
        """The list of all files with their sizes and hashes."""
        return self.root / self.manifest_path()

    @property
    def annotation_folder(self) -> Path:
        """The folder of the annotation files of all splits."""
        return self.root / _ANNOTATIONS

    def annotation_file(self, split: str) -> Path:
        """Return the annotation file of a split."""
        return self.root / self.annotation_path(split)

    def image_folder(self, split: str) -> Path:
        """Return the folder that the file names in a split's annotations are relative to."""
        return self.root / self.image_folder_path(split)

    @staticmethod
    def manifest_path() -> str:
        """Return the relative path of the manifest."""
        return _MANIFEST

    @staticmethod
    def annotation_path(split: str) -> str:
        """Return the relative path of a split's annotation file."""
        return f"{_ANNOTATIONS}/{_ANNOTATION_FILE.format(split)}"

    @staticmethod
    def image_folder_path(split: str) -> str:
        """Return the relative path of a split's image folder."""
        return split

    @classmethod
    def image_path(cls, split: str, file_name: str) -> str:
        """Return the relative path of an image from its name in the annotations."""
        return f"{cls.image_folder_path(split)}/{file_name}"

    @classmethod
    def file_name_of(cls, split: str, path: str) -> str | None:
        """Return the name that annotations give an image; None if it is not in the split."""
        folder = f"{cls.image_folder_path(split)}/"
        return path.removeprefix(folder) if path.startswith(folder) else None

    @classmethod
    def split_of(cls, path: str, splits: Iterable[str]) -> str | None:
        """Return which of the splits a relative path belongs to, if any."""
        for split in splits:
            if path == cls.annotation_path(split) or cls.file_name_of(split, path) is not None:
                return split
        return None

    @staticmethod
    def is_annotation(path: str) -> bool:
        """Return whether a relative path is that of an annotation file."""
        return path.startswith(f"{_ANNOTATIONS}/")

    @classmethod
    def is_wanted(cls, path: str) -> bool:
        """Return whether a file of a published archive belongs to a data set.

        Of the annotations only instances are used, not captions or keypoints; files that are in no
        folder are not used.
        """
        folder, _, name = path.rpartition("/")
        if not folder:
            return False
        prefix = _ANNOTATION_FILE.partition("{")[0]
        return not cls.is_annotation(path) or name.startswith(prefix)

    def splits(self) -> tuple[str, str]:
        """Return the names of the training and the validation split.

        They are found by their annotation files, instances_train*.json and instances_val*.json.

        Raises:
            DatasetError: there is not exactly one of each.
        """
        folder = self.annotation_folder
        if not folder.is_dir():
            if not self.root.is_dir():
                found = "the folder does not exist"
            else:
                found = f"it holds {_listed(entry.name for entry in self.root.iterdir())}"
            raise DatasetError(
                f"{self.root}: not a COCO data set: no folder named {_ANNOTATIONS} ({found}). Give "
                f"a folder with {self.annotation_path('train2017')}, "
                f"{self.annotation_path('val2017')} and the image folders "
                f"{self.image_folder_path('train2017')} and {self.image_folder_path('val2017')}"
            )
        names = sorted(entry.name for entry in folder.iterdir())
        return self._only_split("train", names), self._only_split("val", names)

    def _only_split(self, kind: str, names: list[str]) -> str:
        pattern = re.compile(re.escape(_ANNOTATION_FILE).replace(r"\{\}", f"({kind}.*)"))
        matches = [match[1] for name in names if (match := pattern.fullmatch(name))]
        packed = [name for name in names if pattern.fullmatch(name.removesuffix(".gz"))]
        if not matches and packed:
            raise DatasetError(
                f"{self.annotation_folder / packed[0]}: compressed. Unpack it with `gunzip "
                f"{self.annotation_folder / packed[0]}`"
            )
        if len(matches) != 1:
            raise DatasetError(
                f"{self.annotation_folder}: {len(matches) or 'no'} annotation files "
                f"{_ANNOTATION_FILE.format(kind + '*')}, but exactly one is needed. The folder "
                f"holds {_listed(names)}"
            )
        return matches[0]

    def files(self) -> list[str]:
        """Return the relative paths, sorted, of all files that make up the data set.

        These are the annotation files of its two splits and every file in their image folders.

        Raises:
            DatasetError: the folder is not a data set, an image folder is missing, or the name of a
                file is not UTF-8, which a manifest is.
        """
        found = []
        for split in self.splits():
            found.append(self.annotation_path(split))
            folder = self.image_folder(split)
            if not folder.is_dir():
                raise DatasetError(
                    f"{folder}: image folder missing. Copy or unpack the images of {split} into it"
                )
            for directory, _, names in os.walk(folder):
                relative = Path(directory).relative_to(self.root).as_posix()
                found += [f"{relative}/{name}" for name in names]
        unusable = [path for path in found if not is_utf8(path)]
        if unusable:
            raise DatasetError(
                f"{self.root}: names that are not UTF-8: {_listed(map(printable, unusable))}. "
                "Rename the files (`convmv -t utf8` can), and file_name in the annotations with "
                "them"
            )
        return sorted(found)


def splits(data: Path) -> tuple[str, str]:
    """Return the names of the training and the validation split of a data set folder.

    Raises:
        DatasetError: see `DatasetFolder.splits`.
    """
    return DatasetFolder(data).splits()


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:10]) or "nothing"
    return shown + (f" and {len(ordered) - 10} more" if len(ordered) > 10 else "")
