"""Sealing a data set into one read-only squashfs image.

The image is made from the manifest: exactly the files that it lists, each held against its hash
while it is packed. Payload, inodes and tables are not compressed (JPEG files would not get smaller,
and a host reads them at the speed of its disk), owners and times are fixed, and the order is the
manifest's. So the same data set gives the same bytes, wherever and whenever it is packed.
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

from cocodata.download.download import require_room
from cocodata.errors import DatasetError
from cocodata.files import atomic_path, file_digest, write_atomically
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import (
    Manifest,
    manifest_bytes,
    read_manifest,
)
from cocodata.sync.torrent import Torrent, make_torrent

# Nothing that depends on the time or the machine. Without fragments and with blocks larger than
# most images, an image is one run of bytes that is read at once.
_OPTIONS = (
    *("-tar", "-noI", "-noId", "-noD", "-noF", "-noX", "-no-fragments", "-no-xattrs"),
    *("-no-exports", "-b", "1M", "-all-root", "-all-time", "0", "-mkfs-time", "0"),
    *("-root-mode", "0755", "-no-recovery", "-quiet", "-no-progress"),
)

SEAL = "seal.json"

Advance = Callable[[str, int, int], None]
"""Told what is done, how many more bytes of it, and of how many."""


@dataclass(frozen=True)
class Seal:
    """What is known of a sealed data set.

    Attributes:
        name: the data set's name.
        version: the data set's version.
        image: file name of the squashfs image.
        torrent: file name of the list of its pieces' hashes.
        size: bytes of the image.
        sha256: hash of the image.
        images: how many images each split has.
        made_by: the program that made it: another version may lay the same files out otherwise.
    """

    name: str
    version: str
    image: str
    torrent: str
    size: int
    sha256: str
    images: dict[str, int]
    made_by: str


def read_seal(packed: Path, name: str) -> Seal:
    """Read what was packed last of a data set, and look that its image is there.

    Raises:
        DatasetError: nothing was packed, or it is damaged.
    """
    folder = packed / name
    path = folder / SEAL
    remedy = f"Pack it with `make coco-pack DATASET={name}`"
    try:
        seal = Seal(**orjson.loads(path.read_bytes()))
        torrent = Torrent((folder / seal.torrent).read_bytes())
        size = (folder / seal.image).stat().st_size
    except FileNotFoundError as error:
        raise DatasetError(f"{error.filename}: does not exist. {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not readable ({error!r}). {remedy}") from None
    if not size == seal.size == torrent.size:
        raise DatasetError(
            f"{folder / seal.image}: {size} bytes, sealed with {seal.size}. {remedy}"
        )
    return seal


def pack_dataset(
    data: Path,
    packed: Path,
    *,
    name: str | None = None,
    piece_length: int | None = None,
    advance: Advance = lambda *_: None,
) -> tuple[Seal, bool]:
    """Make the image of a verified data set.

    Args:
        data: the data set folder.
        packed: the image, its torrent and its seal go into the folder NAME in it.
        name: name of the data set on the hosts; the manifest's if None.
        piece_length: bytes of a piece, a power of two; chosen by the size if None.
        advance: told of progress.

    Returns:
        The seal, and whether anything had to be done.

    Raises:
        DatasetError: the data set is not verified, a file is not what the manifest says, the disk
            is too small, or mksquashfs is missing or fails.
    """
    manifest = read_manifest(data)
    if manifest is None or manifest.verified is None:
        raise DatasetError(
            f"{data}: not verified. Only what was looked at as a whole is sealed: "
            f"`make coco-verify DATA={data}` comes first"
        )
    name = name or manifest.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DatasetError(f"{name!r}: no name for a data set: letters, digits, dots and dashes")
    folder = packed / name
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{manifest.version[:16]}"
    try:
        old = read_seal(packed, name)
        if old.version == manifest.version:
            return old, False
    except DatasetError:
        pass  # Nothing was packed yet, or it is damaged: it is made anew.
    total = sum(entry.size for entry in manifest.files.values())
    # Inodes, directories and padding.
    require_room(folder, total + 512 * len(manifest.files) + (64 << 20), "the image")
    image = folder / f"{stem}.squashfs"
    with atomic_path(image) as temporary:
        made_by = _make_image(
            data, manifest, name, temporary, lambda done: advance("Packing", done, total)
        )
        temporary.chmod(0o444)
    size = image.stat().st_size
    torrent = make_torrent(image, piece_length, lambda done: advance("Hashing", done, size))
    write_atomically(image.with_suffix(".torrent"), torrent)
    seal = Seal(
        name=name,
        version=manifest.version,
        image=image.name,
        torrent=f"{stem}.torrent",
        size=size,
        sha256=file_digest(image),
        images=dict(manifest.verified["images"]),
        made_by=made_by,
    )
    # Last: where it is, all of it is.
    write_atomically(folder / SEAL, orjson.dumps(asdict(seal), option=orjson.OPT_INDENT_2))
    return seal, True


def _make_image(
    data: Path, manifest: Manifest, name: str, image: Path, advance: Callable[[int], None]
) -> str:
    program = shutil.which("mksquashfs")
    if program is None:
        raise DatasetError("mksquashfs is missing: install squashfs-tools")
    version = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    # The time of verification is not part of what is sealed.
    verified = {"images": dict((manifest.verified or {})["images"])}
    sealed = manifest_bytes(Manifest(name, manifest.files, verified))
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
                _write_tar(data, manifest, sealed, pipe, advance)
        except BrokenPipeError:
            pass  # It says itself what is wrong.
        except BaseException:
            running.kill()
            raise
        output = running.stdout.read().decode(errors="replace").strip()
    if running.returncode:
        raise DatasetError(f"{image}: mksquashfs failed: {output or running.returncode}")
    return version.stdout.partition("\n")[0].split(" (")[0]


def _write_tar(
    data: Path, manifest: Manifest, sealed: bytes, pipe: IO[bytes], advance: Callable[[int], None]
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
                    f"{data / path}: not what the manifest says. `make coco-verify REPAIR=1` "
                    "restores it"
                )
            _add(tar, path, content)
            advance(len(content))
        _add(tar, DatasetFolder.manifest_path(), sealed)


def _add(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    file = tarfile.TarInfo(path)
    file.size, file.mode = len(content), 0o644
    tar.addfile(file, io.BytesIO(content))
