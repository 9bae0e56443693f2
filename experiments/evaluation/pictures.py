"""Arbitrary picture files as a split, so that the same input pipeline can read them."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cocodata import Categories, Split

# Pillow's modes of JPEG files that the input pipeline reads without conversion.
_SUPPORTED_MODES = {"RGB", "L"}
# What Pillow lists among its formats without reading it as a picture.
_NOT_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG"}
_WHITE_16_BIT = 65535.0


@dataclass(frozen=True)
class Pictures:
    """Readable picture files, and the reasons why others cannot be read."""

    split: Split
    """One image per readable file, with ids 1, 2, 3, ... and without boxes."""
    files: list[Path]
    """The files of the split's images."""
    unreadable: dict[Path, str]


@dataclass(frozen=True)
class FoundPictures:
    """Picture files, and how many other files were passed over."""

    files: list[Path]
    others: int


def find_pictures(where: str, *, leave_out: Path | None = None) -> FoundPictures:
    """Find picture files: a single file, all in a folder and below, or a glob pattern's matches.

    Files that no picture format names so and hidden files are passed over, but not a single file.

    Args:
        where: the file, folder or pattern; `**` matches folders at any depth.
        leave_out: a folder inside of it that is not looked into: the results of an earlier run.

    Raises:
        FileNotFoundError: There are none.
    """
    path = Path(where)
    if path.is_file():
        return FoundPictures([path], 0)
    hidden = leave_out.resolve() if leave_out is not None else None
    if path.resolve() == hidden:
        hidden = None
    if path.is_dir():
        found = list(_files_below(path, hidden, set()))
        problem = f"{path}: no pictures in this folder or below"
    else:
        matches = sorted(Path(each) for each in glob.glob(where, recursive=True))  # noqa: PTH207 (patterns may be absolute)
        found = [
            file
            for each in matches
            for file in ([each] if each.is_file() else _files_below(each, hidden, set()))
        ]
        problem = f"{where}: no such file or folder, and no picture matches the pattern"
    found = list(dict.fromkeys(found))  # a pattern may match a folder and what is in it
    extensions = _extensions()
    files = [
        each
        for each in found
        if each.suffix.lower() in extensions and not each.name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(problem)
    return FoundPictures(files, len(found) - len(files))


def _files_below(folder: Path, leave_out: Path | None, seen: set[Path]) -> Iterator[Path]:
    """Yield the files of a folder and those below it, linked ones too, in alphabetical order."""
    real = folder.resolve()
    if real == leave_out or real in seen or not folder.is_dir():
        return
    seen.add(real)
    for each in sorted(folder.iterdir()):
        if each.is_file():
            yield each
        elif not each.name.startswith("."):
            yield from _files_below(each, leave_out, seen)


def _extensions() -> set[str]:
    return {
        extension
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_PICTURES
    }


def output_names(files: Sequence[Path]) -> list[Path]:
    """Name a JPEG file for each picture: in the same folders, below those that all have in common.

    Pictures in one folder that differ in their extension only keep it, from the second on.
    """
    folders = [each.absolute().parent for each in files]
    common = Path(os.path.commonpath(folders))
    names: list[Path] = []
    used: set[Path] = set()
    for file, folder in zip(files, folders, strict=True):
        numbered = (f"{file.name}.{number}.jpg" for number in itertools.count(2))
        for name in itertools.chain((f"{file.stem}.jpg", f"{file.name}.jpg"), numbered):
            path = folder.relative_to(common) / name
            if path not in used:
                break
        used.add(path)
        names.append(path)
    return names


def require_other_folder(files: Sequence[Path], names: Sequence[Path], out: Path) -> None:
    """Refuse an output folder in which pictures lie that are read, or would be written over.

    Raises:
        ValueError: it is such a folder.
    """
    read = {each.resolve() for each in files}
    folders = {each.parent for each in read}
    lost = [name for name in names if (out / name).resolve() in read]
    if lost or out.resolve() in folders:
        what = f"would be written over, such as {out / lost[0]}" if lost else "lie there"
        raise ValueError(
            f"{out} is a folder of the pictures that are read: choose another with --out (OUT=); "
            f"pictures {what}"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8 bits a channel as the input pipeline does: 16-bit grey by its full range.

    Raises:
        ValueError: it has 32-bit values outside the ranges of pictures.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        top = 1.0 if image.mode == "F" else _WHITE_16_BIT
        if not (values.min() >= 0 and values.max() <= top):  # NaN is neither
            raise ValueError(
                f"32-bit values from {values.min():g} to {values.max():g}, expected 0 to {top:g}"
            )
        # DALI rounds in the same way.
        grey = np.floor(values.astype(np.float64) * (255.0 / top) + 0.5).astype(np.uint8)
        image = Image.fromarray(grey)
    return image.convert("RGB")


def open_picture(file: Path) -> Image.Image:
    """Open a picture as RGB, rotated according to its EXIF orientation.

    Raises:
        OSError: It cannot be read; the message says why.
    """
    try:
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    # On damaged files, Pillow's decoders raise errors of any type.
    except Exception as error:
        raise OSError(f"{file}: not a readable picture ({error})") from error


def read_pictures(files: Sequence[Path], scratch: Path, categories: Categories) -> Pictures:
    """Read all files, and create a split of those that are readable.

    Files that the input pipeline would read differently from `open_picture` (EXIF orientation,
    palettes, CMYK, transparency) are converted and written to the scratch folder.

    Args:
        files: Picture files of any format that Pillow reads.
        scratch: A folder that must exist as long as the split is used.
        categories: The detector's categories.
    """
    readable: list[Path] = []
    paths: list[str] = []
    sizes: list[tuple[int, int]] = []
    unreadable: dict[Path, str] = {}
    for file in files:
        try:
            image = open_picture(file)
        except OSError as error:
            unreadable[file] = str(error)
            continue
        path = file.absolute()
        if not _is_supported(file):
            path = scratch / f"{len(readable)}.png"
            image.save(path)
        readable.append(file)
        paths.append(str(path))
        sizes.append(image.size)
    count = len(readable)
    split = Split(
        name="pictures",
        image_dir=Path("/"),  # the file names are absolute
        annotation_file=Path("/"),  # there is none
        image_ids=np.arange(1, count + 1, dtype=np.int64),
        file_names=paths,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        box_offsets=np.zeros(count + 1, dtype=np.int64),
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        categories=categories,
    )
    return Pictures(split=split, files=readable, unreadable=unreadable)


def _is_supported(file: Path) -> bool:
    """Return whether the input pipeline reads the file like `open_picture`."""
    orientation_tag = 0x0112
    with Image.open(file) as image:
        return (
            image.format == "JPEG"
            and image.mode in _SUPPORTED_MODES
            and image.getexif().get(orientation_tag, 1) == 1
        )
