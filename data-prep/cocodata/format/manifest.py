"""The manifest of a data set folder: size and hash of every file.

manifest.json lists every annotation file and image with its size and SHA-256. The data set's
version is the hash of that list, so two folders with the same version hold the same data, wherever
they are and whenever they were made.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from cocodata.errors import DatasetError
from cocodata.files import file_digest, write_atomically
from cocodata.format.layouts import DatasetFolder

Advance = Callable[[int], None]
"""Called with how many more files are done."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of a manifest.json.

    Attributes:
        name: name of the data set.
        files: size and hash by path, relative to the data set folder, in ascending order.
        verified: when every image was decoded and found to agree with the annotations (`at`), and
            how many images each split has (`images`); None if that was not done.
    """

    name: str
    files: Mapping[str, FileEntry]
    verified: Mapping[str, Any] | None = None

    @property
    def version(self) -> str:
        """SHA-256 over the sorted (path, hash) pairs."""
        lines = (f"{path}\0{entry.sha256}\n" for path, entry in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(data: Path) -> Manifest | None:
    """Read the manifest of a data set folder; None if it has none.

    Raises:
        DatasetError: the file is damaged, or was edited so that its version no longer matches.
    """
    path = DatasetFolder(data).manifest_file
    remedy = f"Write a new one with `make coco-manifest DATA={data}`"
    try:
        tree = orjson.loads(path.read_bytes())
        manifest = Manifest(
            name=tree["name"],
            files={
                name: FileEntry(entry["size"], entry["sha256"])
                for name, entry in tree["files"].items()
            },
            verified=tree["verified"],
        )
        version = tree["version"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not a manifest ({error!r}). {remedy}") from None
    if version != manifest.version:
        raise DatasetError(
            f"{path}: its version {version!r} does not match the files it lists. {remedy}"
        )
    return manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the content of a manifest.json."""
    tree = {
        "name": manifest.name,
        "version": manifest.version,
        "verified": manifest.verified,
        "files": {path: asdict(entry) for path, entry in sorted(manifest.files.items())},
    }
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n"


def require_writable(data: Path) -> None:
    """Check that a manifest can be written into a data set folder, before hours of work for it.

    Raises:
        DatasetError: the folder can only be read.
    """
    if data.is_dir() and not os.access(data, os.W_OK | os.X_OK):
        raise DatasetError(
            f"{data}: can only be read, and {DatasetFolder.manifest_path()} has to be written "
            f"into it. Run this as a user who may write there; `make coco-check DATA={data}`, "
            "training and evaluation need no manifest"
        )


def write_manifest(data: Path, manifest: Manifest) -> None:
    """Write manifest.json into a data set folder."""
    write_atomically(DatasetFolder(data).manifest_file, manifest_bytes(manifest))


def build_manifest(
    data: Path, name: str, *, workers: int | None = None, advance: Advance = lambda _: None
) -> Manifest:
    """Hash every file of a data set.

    Args:
        data: the data set folder.
        name: name of the data set.
        workers: number of processes; None for one per core.
        advance: called with progress.

    Raises:
        DatasetError: the folder is not a data set, or a file cannot be read.
    """
    paths = DatasetFolder(data).files()
    return Manifest(name, dict(zip(paths, _hash_files(data, paths, workers, advance), strict=True)))


def _hash_files(
    data: Path, paths: list[str], workers: int | None, advance: Advance
) -> list[FileEntry]:
    entries: list[FileEntry] = []
    with ProcessPoolExecutor(workers or usable_cores()) as pool:
        for done in pool.map(partial(_hash_chunk, data), chunks(paths, 64)):
            entries += done
            advance(len(done))
    return entries


def _hash_chunk(data: Path, paths: list[str]) -> list[FileEntry]:
    return [hash_file(data / path) for path in paths]


def hash_file(path: Path) -> FileEntry:
    """Return size and hash of one file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return FileEntry(path.stat().st_size, file_digest(path))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Difference:
    """How a file differs from its entry in the manifest."""

    path: str
    detail: str


def compare_with_manifest(data: Path, manifest: Manifest, *, threads: int) -> list[Difference]:
    """Compare the files of a data set folder with its manifest without reading the images.

    Every file must exist with its size. The annotation files are also hashed: they are few, and
    an edit may leave the size unchanged. Several threads help only on storage with high latency.

    Returns:
        The differences in the order of the paths; empty if there are none.
    """
    paths = list(manifest.files)

    def compare(chunk: list[str]) -> list[Difference]:
        return [
            Difference(path, detail)
            for path in chunk
            if (detail := _difference(data, path, manifest.files[path])) is not None
        ]

    with ThreadPoolExecutor(threads) as pool:
        return [found for some in pool.map(compare, chunks(paths, 1024)) for found in some]


def _difference(data: Path, path: str, entry: FileEntry) -> str | None:
    try:
        # A string, because making 118,000 Path objects takes longer than the calls of stat.
        size = os.stat(f"{data}/{path}").st_size  # noqa: PTH116
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != entry.size:
        return f"{size} bytes, {entry.size} in the manifest"
    if DatasetFolder.is_annotation(path) and hash_file(data / path) != entry:
        return "content does not match the hash in the manifest"
    return None


def chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the items in lists of the given size; the last may be shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))
