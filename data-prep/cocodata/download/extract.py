"""Unpacking archives in COCO's layout, whole or single files, from disk or from a server."""

import functools
import io
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from cocodata.download.archives import Archive
from cocodata.download.download import require_free_space
from cocodata.download.fetching import Fetcher, FetchError, RemoteFile
from cocodata.errors import DatasetError
from cocodata.files import atomic_path
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import chunks, usable_cores

_FAILURES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)

# Large enough for a small image with its header, so that it takes one request.
_BUFFER = 1 << 18


def dataset_members(archive: zipfile.ZipFile) -> dict[str, int]:
    """Return path and size of the files of an archive that belong to a data set.

    Raises:
        DatasetError: a member would be written outside the data set's folder.
    """
    members = {}
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
            raise DatasetError(
                f"{archive.filename}: it contains {info.filename!r}, a path outside it"
            )
        if not info.is_dir() and DatasetFolder.is_wanted(str(path)):
            members[str(path)] = info.file_size
    return members


def extract(
    archive: Path,
    data: Path,
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> int:
    """Unpack the missing files of an archive into a data set folder.

    A folder that does not exist yet is unpacked under a temporary name and then renamed, so it is
    complete or absent. An interrupted one is resumed. Members are checked against their CRC-32.

    Args:
        archive: the zip file.
        data: the data set folder.
        workers: number of processes; None for one per core.
        advance: called with how many more files are done, of `len(dataset_members(...))`.

    Returns:
        How many files were written.

    Raises:
        DatasetError: the archive is damaged, or the disk is too small.
    """
    with _opened(archive) as opened:
        members = dataset_members(opened)
    folders: dict[str, list[str]] = {}
    for member in members:
        folders.setdefault(member.partition("/")[0], []).append(member)
    written = 0
    for folder, names in folders.items():
        # The annotations of several archives may share their folder.
        partial = None if (data / folder).exists() else data / f".{folder}.unpacking"
        root = data if partial is None else partial
        missing = [name for name in names if _size(root / name) != members[name]]
        advance(len(names) - len(missing))
        data.mkdir(parents=True, exist_ok=True)
        require_free_space(
            data, sum(members[name] for name in missing), f"unpacking {archive.name}"
        )
        with ProcessPoolExecutor(workers or usable_cores()) as pool:
            for done in pool.map(
                functools.partial(_extract_some, archive, root), chunks(missing, 256)
            ):
                advance(done)
        if partial is not None:
            (partial / folder).rename(data / folder)
            partial.rmdir()
        written += len(missing)
    return written


def extract_files(
    archives: Sequence[Archive | Path], paths: Collection[str], into: Path, fetcher: Fetcher
) -> dict[str, str]:
    """Unpack single files from archives on disk or on servers, of which only they are downloaded.

    Args:
        archives: where to search, in this order.
        paths: the files, relative to a data set's folder.
        into: the folder that they are written into, under these paths.
        fetcher: makes the requests.

    Returns:
        The source of each file that was found. An archive that cannot be read is skipped if others
        have the files.

    Raises:
        DatasetError: files are missing, and some archives could not be read.
    """
    found: dict[str, str] = {}
    failures = []
    for archive in archives:
        name = str(archive) if isinstance(archive, Path) else archive.url
        missing = set(paths) - found.keys()
        if not missing:
            break
        try:
            with _opened(archive, fetcher) as opened:
                for path in sorted(dataset_members(opened).keys() & missing):
                    _extract_one(opened, path, into)
                    found[path] = name
        except (DatasetError, FetchError) as error:
            failures.append(f"  {error}")
    if failures and len(found) < len(paths):
        raise DatasetError("archives cannot be read:\n" + "\n".join(failures))
    return found


@contextmanager
def _opened(archive: Archive | Path, fetcher: Fetcher | None = None) -> Iterator[zipfile.ZipFile]:
    name = str(archive) if isinstance(archive, Path) else archive.url
    try:
        if isinstance(archive, Path):
            with zipfile.ZipFile(archive) as opened:
                yield opened
        else:
            assert fetcher is not None
            remote = io.BufferedReader(RemoteFile(fetcher, archive.url), _BUFFER)
            with zipfile.ZipFile(remote) as opened:
                yield opened
    except _FAILURES as error:
        raise DatasetError(f"{name}: damaged ({error}). Download it again") from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _extract_some(archive: Path, root: Path, names: list[str]) -> int:
    with _opened(archive) as opened:
        for name in names:
            _extract_one(opened, name, root)
    return len(names)


def _extract_one(archive: zipfile.ZipFile, name: str, root: Path) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Every file in an image folder belongs to the data set, so the temporary one is not put there.
    with (
        atomic_path(path, folder=root) as temporary,
        archive.open(name) as source,
        temporary.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
