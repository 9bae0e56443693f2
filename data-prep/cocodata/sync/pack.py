"""Packing a data set into one read-only squashfs image.

The image contains exactly the files in the manifest, each compared with its hash when packed.
Payload, inodes and tables are not compressed: JPEG files would not get smaller, and hosts read them
at the speed of their disks. Owners and times are fixed, and files are in the order of the manifest,
so the same data set gives the same bytes, wherever and whenever it is packed.
"""

import hashlib
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import orjson

from cocodata.download.download import require_free_space
from cocodata.errors import DatasetError
from cocodata.files import atomic_path, file_digest, write_atomically
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import (
    Manifest,
    manifest_bytes,
    read_manifest,
)
from cocodata.sync.torrent import Torrent, make_torrent

# Nothing that depends on the time or the machine. Without fragments, and with blocks larger than
# most JPEG files, each file is one run of bytes that is read at once.
_OPTIONS = (
    *("-tar", "-noI", "-noId", "-noD", "-noF", "-noX", "-no-fragments", "-no-xattrs"),
    *("-no-exports", "-b", "1M", "-all-root", "-all-time", "0", "-mkfs-time", "0"),
    *("-root-mode", "0755", "-no-recovery", "-quiet", "-no-progress"),
)

_METADATA_FILE = "seal.json"

Advance = Callable[[str, int, int], None]
"""Called with the name of the step, how many more bytes are done, and of how many."""


@dataclass(frozen=True)
class ImageMetadata:
    """What seal.json says about a packed data set.

    Attributes:
        name: the data set's name.
        version: the data set's version.
        image: file name of the squashfs image.
        torrent: file name of the list of its pieces' hashes.
        size: bytes of the image.
        sha256: hash of the image.
        images: how many images each split has.
        made_by: the program that made it; another version may arrange the same files differently.
    """

    name: str
    version: str
    image: str
    torrent: str
    size: int
    sha256: str
    images: dict[str, int]
    made_by: str


def read_image_metadata(packed: Path, name: str) -> ImageMetadata:
    """Read the metadata of the version packed last, and check that its image exists.

    Raises:
        DatasetError: nothing was packed, or the image is damaged.
    """
    folder = packed / name
    path = folder / _METADATA_FILE
    remedy = f"Pack it with `make coco-pack DATASET={name}`"
    try:
        metadata = ImageMetadata(**orjson.loads(path.read_bytes()))
        torrent = Torrent((folder / metadata.torrent).read_bytes())
        size = (folder / metadata.image).stat().st_size
    except FileNotFoundError as error:
        raise DatasetError(f"{error.filename}: does not exist. {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: damaged ({error!r}). {remedy}") from None
    if not size == metadata.size == torrent.size:
        raise DatasetError(
            f"{folder / metadata.image}: {size} bytes, {metadata.size} when packed. {remedy}"
        )
    return metadata


def pack_dataset(
    data: Path,
    packed: Path,
    *,
    name: str | None = None,
    piece_length: int | None = None,
    advance: Advance = lambda *_: None,
) -> tuple[ImageMetadata, bool]:
    """Make the image of a verified data set.

    Args:
        data: the data set folder.
        packed: the image, its torrent and seal.json go into the folder NAME in it.
        name: name of the data set on the hosts; that in the manifest if None.
        piece_length: bytes of a piece, a power of two; chosen from the size if None.
        advance: called with progress.

    Returns:
        The metadata, and whether a new image had to be made.

    Raises:
        DatasetError: the data set is not verified, a file differs from the manifest, the disk is
            too small, or mksquashfs is missing or fails.
    """
    manifest = read_manifest(data)
    if manifest is None or manifest.verified is None:
        raise DatasetError(
            f"{data}: not verified. Only verified data sets are packed: run "
            f"`make coco-verify DATA={data}` first"
        )
    name = name or manifest.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DatasetError(
            f"{name!r}: not a valid name for a data set. Use letters, digits, dots and dashes"
        )
    folder = packed / name
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{manifest.version[:16]}"
    try:
        old = read_image_metadata(packed, name)
        if old.version == manifest.version:
            return old, False
    except DatasetError:
        pass  # Nothing was packed yet, or it is damaged: pack it again.
    total = sum(entry.size for entry in manifest.files.values())
    # Inodes, directories and padding.
    require_free_space(folder, total + 512 * len(manifest.files) + (64 << 20), "the image")
    image = folder / f"{stem}.squashfs"
    with atomic_path(image) as temporary:
        made_by = _make_image(
            data, manifest, name, temporary, lambda done: advance("Packing", done, total)
        )
        temporary.chmod(0o444)
    size = image.stat().st_size
    torrent = make_torrent(image, piece_length, lambda done: advance("Hashing", done, size))
    write_atomically(image.with_suffix(".torrent"), torrent)
    metadata = ImageMetadata(
        name=name,
        version=manifest.version,
        image=image.name,
        torrent=f"{stem}.torrent",
        size=size,
        sha256=file_digest(image),
        images=dict(manifest.verified["images"]),
        made_by=made_by,
    )
    # Last: if this file exists, all the others do.
    write_atomically(
        folder / _METADATA_FILE, orjson.dumps(asdict(metadata), option=orjson.OPT_INDENT_2)
    )
    return metadata, True


def _make_image(
    data: Path, manifest: Manifest, name: str, image: Path, advance: Callable[[int], None]
) -> str:
    program = shutil.which("mksquashfs")
    if program is None:
        raise DatasetError("mksquashfs is missing: install squashfs-tools")
    version = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    # The time of verification is not part of the packed content.
    verified = {"images": dict((manifest.verified or {})["images"])}
    packed_manifest = manifest_bytes(Manifest(name, manifest.files, verified))
    with subprocess.Popen(
        [program, "-", str(image), *_OPTIONS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            with running.stdin as pipe:
                _write_tar(data, manifest, packed_manifest, pipe, advance)
        except BrokenPipeError:
            pass  # mksquashfs reports the cause.
        except BaseException:
            running.kill()
            raise
        output = running.stdout.read().decode(errors="replace").strip()
    if running.returncode:
        raise DatasetError(f"{image}: mksquashfs failed: {output or running.returncode}")
    return version.stdout.partition("\n")[0].split(" (")[0]


def _write_tar(
    data: Path,
    manifest: Manifest,
    packed_manifest: bytes,
    pipe: IO[bytes],
    advance: Callable[[int], None],
) -> None:
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        made: set[str] = set()
        for path, entry in sorted(manifest.files.items()):
            for parent in [str(each) for each in Path(path).parents][-2::-1]:
                if parent not in made:
                    made.add(parent)
                    directory = tarfile.TarInfo(parent)
                    directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(directory)
            content = (data / path).read_bytes()
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise DatasetError(
                    f"{data / path}: differs from the manifest. `make coco-verify REPAIR=1` "
                    "restores it"
                )
            _add(tar, path, content)
            advance(len(content))
        _add(tar, DatasetFolder.manifest_path(), packed_manifest)


def _add(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    file = tarfile.TarInfo(path)
    file.size, file.mode = len(content), 0o644
    tar.addfile(file, io.BytesIO(content))
