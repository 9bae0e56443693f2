"""Any picture files as a split, so that they pass through the same input as a data set's."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cocodata import Categories, Split

# Pillow's names of what the input reads as it stands: stored as a detector wants it, upright.
_AS_IT_STANDS = {"RGB", "L"}


@dataclass(frozen=True)
class Pictures:
    """Picture files that can be read, and why others cannot."""

    split: Split
    """One image for each readable file, with the ids 1, 2, 3, ... and without boxes."""
    files: list[Path]
    """(N,) the file of each image of the split."""
    broken: dict[Path, str]


def find_pictures(where: str) -> list[Path]:
    """The files that a path means: a file, all pictures of a folder, or a glob pattern.

    Raises:
        FileNotFoundError: there are none.
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
    files = [path] if path.is_file() else sorted(Path(each) for each in glob.glob(where))  # noqa: PTH207 (an absolute pattern too)
    files = [each for each in files if each.is_file()]
    if not files:
        raise FileNotFoundError(f"{where}: no such file or folder, and no file fits the pattern")
    return files


def open_picture(file: Path) -> Image.Image:
    """A picture as a person sees it: upright, RGB.

    Raises:
        OSError: it cannot be read; the message says why.
    """
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{file}: not a picture that can be read ({error})") from error


def read_pictures(files: Sequence[Path], scratch: Path, categories: Categories) -> Pictures:
    """Look at every file, and make a split of those that can be read.

    What the input would read otherwise than a person sees it (turned by its EXIF orientation,
    palettes, CMYK, transparency) is written upright and in RGB into the scratch folder.

    Args:
        files: picture files of any format that Pillow reads.
        scratch: a folder that outlives the split.
        categories: of the detector.
    """
    readable: list[Path] = []
    stored: list[str] = []
    sizes: list[tuple[int, int]] = []
    broken: dict[Path, str] = {}
    for file in files:
        try:
            image = open_picture(file)
        except OSError as error:
            broken[file] = str(error)
            continue
        place = file.absolute()
        if not _stands(file):
            place = scratch / f"{len(readable)}.png"
            image.save(place)
        readable.append(file)
        stored.append(str(place))
        sizes.append(image.size)
    count = len(readable)
    split = Split(
        name="pictures",
        image_dir=Path("/"),  # the file names are absolute
        annotation_file=Path("/"),  # there is none, and none is read
        image_ids=np.arange(1, count + 1, dtype=np.int64),
        file_names=stored,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        box_offsets=np.zeros(count + 1, dtype=np.int64),
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        categories=categories,
    )
    return Pictures(split=split, files=readable, broken=broken)


def _stands(file: Path) -> bool:
    """Whether the input reads the file as `open_picture` does."""
    orientation_tag = 0x0112
    with Image.open(file) as image:
        return (
            image.format == "JPEG"
            and image.mode in _AS_IT_STANDS
            and image.getexif().get(orientation_tag, 1) == 1
        )
