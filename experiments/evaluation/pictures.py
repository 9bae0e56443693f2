"""Arbitrary picture files as a split, so that the same input pipeline can read them."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cocodata import Categories, Split

# Pillow's modes of JPEG files that the input pipeline reads without conversion.
_SUPPORTED_MODES = {"RGB", "L"}


@dataclass(frozen=True)
class Pictures:
    """Readable picture files, and the reasons why others cannot be read."""

    split: Split
    """One image per readable file, with ids 1, 2, 3, ... and without boxes."""
    files: list[Path]
    """The files of the split's images."""
    unreadable: dict[Path, str]


def find_pictures(where: str) -> list[Path]:
    """Find picture files: a single file, all pictures in a folder, or a glob pattern's matches.

    Raises:
        FileNotFoundError: There are none.
    """
    path = Path(where)
    if path.is_dir():
        readable = Image.registered_extensions()
        files = sorted(
            each for each in path.iterdir() if each.is_file() and each.suffix.lower() in readable
        )
        if not files:
            raise FileNotFoundError(f"{path}: no pictures in this folder")
        return files
    files = [path] if path.is_file() else sorted(Path(each) for each in glob.glob(where))  # noqa: PTH207 (patterns may be absolute)
    files = [each for each in files if each.is_file()]
    if not files:
        raise FileNotFoundError(f"{where}: no such file or folder, and no file matches the pattern")
    return files


def open_picture(file: Path) -> Image.Image:
    """Open a picture as RGB, rotated according to its EXIF orientation.

    Raises:
        OSError: It cannot be read; the message says why.
    """
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
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
