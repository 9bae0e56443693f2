"""Unpacking archives of COCO's layout, all of them or single files, from disk or from a server."""

import io
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from cocodata.download.archives import Archive
from cocodata.download.download import require_room
from cocodata.download.fetching import Fetcher, FetchError, RemoteFile
from cocodata.errors import DatasetError
from cocodata.files import atomic_path
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import chunks, usable_cores

_FAILURES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)

# Holds a small image with its header, so that it takes one request.
_BUFFER = 1 << 18


def wanted_members(archive: zipfile.ZipFile) -> dict[str, int]:
    """Return path and size of the files of an archive that belong to a data set.

    Of the annotations, these are the instances_*.json: captions and keypoints are not used.

    Raises:
        DatasetError: a member would be written outside the data set's folder.
    """
    members = {}
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
            raise DatasetError(f"{archive.filename}: it holds {info.filename!r}, a path outside it")
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
    """Unpack what is missing of an archive into a data set folder.

    A folder that is not there yet is filled beside its place and then renamed: where it has its
    name it is complete. Members are held against their CRC-32.

    Args:
        archive: the zip file.
        data: the data set folder.
        workers: number of processes; None for one per core.
        advance: told how many more files are done, of `len(wanted_members(...))`.

    Returns:
        How many files were written.

    Raises:
        DatasetError: the archive is damaged, or the disk is too small.
    """
    with _opened(archive) as opened:
        members = wanted_members(opened)
    folders: dict[str, list[str]] = {}
    for member in members:
        folders.setdefault(member.partition("/")[0], []).append(member)
    written = 0
    for folder, names in folders.items():
        # The annotations of several archives may share their folder.
        beside = None if (data / folder).exists() else data / f".{folder}.unpacking"
        root = data if beside is None else beside
        missing = [name for name in names if _size(root / name) != members[name]]
        advance(len(names) - len(missing))
        data.mkdir(parents=True, exist_ok=True)
        require_room(data, sum(members[name] for name in missing), f"unpacking {archive.name}")
        with ProcessPoolExecutor(workers or usable_cores()) as pool:
            for done in pool.map(partial(_extract_some, archive, root), chunks(missing, 256)):
                advance(done)
        if beside is not None:
            (beside / folder).rename(data / folder)
            beside.rmdir()
        written += len(missing)
    return written


def extract_files(
    archives: Sequence[Archive | Path], paths: Collection[str], into: Path, fetcher: Fetcher
) -> dict[str, str]:
    """Unpack single files, from archives on disk or, fetching only them, from servers.

    Args:
        archives: where to look, in this order.
        paths: the files, relative to a data set's folder.
        into: the folder that they are written into, under these paths.
        fetcher: makes the requests.

    Returns:
        Where each file that was found came from; an archive that cannot be read is passed over if
        others have the files.

    Raises:
        DatasetError: files are missing, and there were archives that could not be read.
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
                for path in sorted(wanted_members(opened).keys() & missing):
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
