"""Which file an annotation file means, where its name for the image is not quite the file's.

Names are written on other systems and in other folders: with backslashes, with the folders that
were above the images, as addresses, with accents as separate characters. A file is taken only if
no other image of the annotations would be the same file.
"""

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cocodata.text import count, is_utf8, printable


def locate(
    folder: Path, names: Sequence[str], listed: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """Find the files of a split's images.

    Args:
        folder: the split's image folder.
        names: their names in the annotations.
        listed: what the folder holds, relative to it; None to look.

    Returns:
        The names relative to the folder, in which those that were not found are unchanged, and
        notes on those that differ.
    """
    # Nearly always: nothing in a plain name can stand for anything else.
    joined = "".join(names)
    if joined.isascii() and "/" not in joined and "\\" not in joined:
        return list(names), []
    finder = _Finder(folder, listed)
    found = {name: finder.find(name) for name in set(names) if not _is_plain(name)}
    wanted_by: dict[str, set[str]] = defaultdict(set)
    for name in set(names):
        wanted_by[found.get(name) or name].add(name)
    taken = {
        name: file
        for name, file in found.items()
        if file is not None and file != name and len(wanted_by[file]) == 1
    }
    renamed = [name for name in names if posixpath.normpath(name) != taken.get(name, name)]
    renamed = [name for name in renamed if name in taken]
    notes = []
    if renamed:
        notes.append(
            f"{count(len(renamed), 'file name')} adapted to find the files: "
            f"{printable(renamed[0])} is read from {printable(taken[renamed[0]])}"
        )
    clashes = sorted(
        (sorted(group), file)
        for file, group in wanted_by.items()
        if len(group) > 1 and not all(map(_is_plain, group))
    )
    if clashes:
        group, file = clashes[0]
        notes.append(
            f"{count(len(clashes), 'file')} could be of several images: {printable(file)} of "
            f"{' and '.join(map(printable, group[:2]))}"
        )
    return [taken.get(name, name) for name in names], notes


def stays_inside(file_name: str) -> bool:
    """Return whether a name is that of a file within the folder that it is relative to."""
    relative = PurePosixPath(file_name)
    return bool(relative.parts) and not relative.is_absolute() and ".." not in relative.parts


def _is_plain(name: str) -> bool:
    return name.isascii() and "/" not in name and "\\" not in name


class _Finder:
    """Looks up names in one image folder."""

    def __init__(self, folder: Path, listed: Collection[str] | None) -> None:
        self._folder = folder
        self._listed = listed
        self._exists: Callable[[str], bool] = (
            listed.__contains__
            if listed is not None
            else lambda name: os.path.exists(f"{folder}/{name}")  # noqa: PTH110
        )
        self._by_unicode: dict[str, set[str]] | None = None

    def find(self, name: str) -> str | None:
        """Return the file that a name stands for; None if there is none."""
        if stays_inside(name):
            plain = posixpath.normpath(name)
            if self._exists(plain):
                return plain
        for candidate in _candidates(name):
            if self._exists(candidate):
                return candidate
        if name.isascii() and "%" not in name:
            return None
        for candidate in _candidates(name):
            same = self._same_in_unicode(candidate)
            if len(same) == 1:
                return next(iter(same))
        return None

    def _same_in_unicode(self, name: str) -> set[str]:
        """Return the files with a name that differs only in its Unicode form or its encoding."""
        if self._by_unicode is None:
            self._by_unicode = defaultdict(set)
            for file in self._files():
                readings = {file} if is_utf8(file) else set(_readings(file))
                for reading in readings:
                    self._by_unicode[unicodedata.normalize("NFC", reading)].add(file)
        return self._by_unicode.get(unicodedata.normalize("NFC", name), set())

    def _files(self) -> Iterator[str]:
        if self._listed is not None:
            yield from self._listed
            return
        for directory, _, files in os.walk(self._folder, followlinks=True):
            relative = Path(directory).relative_to(self._folder)
            for file in files:
                yield (relative / file).as_posix()


def _readings(file: str) -> Iterator[str]:
    """Yield what a name that is not UTF-8 may mean."""
    for encoding in ("cp1252", "cp850"):
        try:
            yield os.fsencode(file).decode(encoding)
        except UnicodeDecodeError:
            continue


def _candidates(name: str) -> Iterator[str]:
    """Yield the relative paths that a name may stand for, those with most folders first."""
    if "://" in name:
        path = urlsplit(name).path if "?" in name or "#" in name else name.partition("://")[2]
        forms = [path, unquote(path)]
    else:
        forms = [name.replace("\\", "/")]
    for form in dict.fromkeys(forms):
        parts = [part for part in form.split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            if ".." not in parts[start:]:
                yield "/".join(parts[start:])
