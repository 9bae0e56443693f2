"""Downloading archives: in parallel, in pieces, and on from where an earlier download stopped.

Beside an archive that is not complete lie NAME.part, into which pieces are written at their place,
and NAME.part.json, which says which ones are on disk. The archive gets its name when its checksum
has been found to be right.
"""

import os
import shutil
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from cocodata.download.archives import Archive, archive_digest
from cocodata.download.fetching import ChangedError, Fetcher, FetchError, Remote
from cocodata.errors import DatasetError
from cocodata.files import write_atomically

PIECE = 16 << 20
"""Bytes of a request; as much of each connection's work is lost at most when killed."""


class Watcher:
    """Told of a download as it goes on; here, by nobody."""

    def begin(self, archive: Archive, size: int | None, there: int) -> None:
        """An archive of `size` bytes is begun, of which `there` are on disk already."""

    def advance(self, archive: Archive, amount: int) -> None:
        """More bytes have come; fewer than none if some have to come again."""

    def check(self, archive: Archive) -> None:
        """All bytes are there, their checksum is computed."""

    def end(self, archive: Archive) -> None:
        """The archive is complete."""


@dataclass
class _Transfer:
    """An archive on its way."""

    archive: Archive
    folder: Path
    remote: Remote
    done: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def part(self) -> Path:
        return self.folder / f"{self.archive.name}.part"

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.archive.name}.part.json"

    @property
    def size(self) -> int:
        assert self.remote.size is not None
        return self.remote.size

    @property
    def pieces(self) -> range:
        return range(-(-self.size // PIECE))

    def extent(self, piece: int) -> tuple[int, int]:
        return piece * PIECE, min(self.size, (piece + 1) * PIECE)

    def bytes_done(self) -> int:
        return sum(end - start for start, end in map(self.extent, self.done))

    def finish_piece(self, piece: int) -> None:
        with self.lock:
            self.done.add(piece)
            state = {
                "size": self.size,
                "piece": PIECE,
                "validator": self.remote.validator,
                "done": sorted(self.done),
            }
            # Where it is lost, pieces are fetched again.
            write_atomically(self.journal, orjson.dumps(state), durable=False)

    def discard(self) -> None:
        self.done.clear()
        self.journal.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)


def download(
    archives: Sequence[Archive],
    folder: Path,
    fetcher: Fetcher,
    *,
    connections: int = 8,
    reserve: int = 0,
    watcher: Watcher | None = None,
) -> list[Path]:
    """Download archives into a folder; those that are there already are only checked.

    An archive that cannot be had does not keep the others from being downloaded.

    Args:
        archives: what to download.
        folder: where to.
        fetcher: makes the requests.
        connections: how many requests are made at the same time.
        reserve: bytes that must stay free on the same disk.
        watcher: told of progress.

    Returns:
        The archives' files, in order.

    Raises:
        DatasetError: an archive cannot be had, or the disk is too small.
    """
    watcher = watcher or Watcher()
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    transfers = []
    for archive in archives:
        try:
            if not is_complete(folder / archive.name, archive, watcher):
                transfers.append(_begin(archive, folder, fetcher))
        except FetchError as error:
            failures[archive.name] = str(error)
    _look_at_room(folder, transfers, reserve)

    with (
        ThreadPoolExecutor(connections) as pool,
        ThreadPoolExecutor(max(1, len(transfers))) as coordinators,
    ):
        running = {
            coordinators.submit(_fetch, transfer, pool, fetcher, watcher): transfer
            for transfer in transfers
        }
        try:
            for future in as_completed(running):
                try:
                    future.result()
                except FetchError as error:
                    failures[running[future].archive.name] = str(error)
        except BaseException:  # Ctrl-C: what is on disk is kept for the next run.
            fetcher.stopped.set()
            raise
    if failures:
        lines = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise DatasetError(
            f"{folder}: {len(failures)} of {len(archives)} archives could not be downloaded\n"
            f"{lines}\nThe same command goes on where this one stopped. An archive that you have "
            "can be put into the folder by hand; MIRROR= takes them from another server"
        )
    return [folder / archive.name for archive in archives]


def is_complete(path: Path, archive: Archive, watcher: Watcher | None = None) -> bool:
    """Return whether an archive is there with the right size and checksum.

    A checksum is computed once: a note beside the file says for what size and time it was.

    Raises:
        FetchError: another file has its name.
    """
    if not path.is_file():
        return False
    stat = path.stat()
    if archive.size not in (None, stat.st_size):
        raise FetchError(
            f"a file of {stat.st_size:,} bytes is there, the archive has {archive.size:,}: move "
            "it away"
        )
    if archive.digest is None:
        return True
    checked, stamp = _stamp(path, archive.digest)
    if checked.is_file() and checked.read_text() == stamp:
        return True
    if watcher is not None:
        watcher.check(archive)
    found = archive_digest(path, archive.digest.partition(":")[0])
    if found != archive.digest:
        raise FetchError(
            f"the file that is there has the checksum {found}, not {archive.digest}: move it away"
        )
    checked.write_text(stamp)
    return True


def _begin(archive: Archive, folder: Path, fetcher: Fetcher) -> _Transfer:
    """Ask for an archive's size, and find out how much of it is on disk."""
    remote = fetcher.look(archive.url)
    if archive.size is not None:
        if remote.size not in (None, archive.size):
            raise FetchError(
                f"{archive.url}: the server has {remote.size:,} bytes, the archive has "
                f"{archive.size:,}: not the same file"
            )
        remote = replace(remote, size=archive.size)
    transfer = _Transfer(archive, folder, remote)
    try:
        state = orjson.loads(transfer.journal.read_bytes())
        # With a checksum, what is on disk may come from another server; it is judged at the end.
        same = archive.digest is not None or state["validator"] == remote.validator is not None
        if (
            remote.ranges
            and same
            and (state["size"], state["piece"]) == (remote.size, PIECE)
            and transfer.part.stat().st_size == remote.size
        ):
            transfer.done.update(state["done"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Nothing there to go on with.
    return transfer


def _look_at_room(folder: Path, transfers: Sequence[_Transfer], beside: int) -> None:
    to_come = sum((t.remote.size or 0) - t.bytes_done() for t in transfers)
    require_room(folder, to_come + beside, "the archives and what is unpacked from them")


def require_room(folder: Path, needed: int, what: str) -> None:
    """Look at the free space of a disk before writing to it.

    Raises:
        DatasetError: it is too little.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"{folder}: {needed / 1e9:.1f} GB are needed for {what}, {free / 1e9:.1f} GB are "
            "free. Make room, or choose a folder on another disk"
        )


def _fetch(
    transfer: _Transfer, pool: ThreadPoolExecutor, fetcher: Fetcher, watcher: Watcher
) -> None:
    """Fetch what is missing of an archive, check all of it, and give it its name."""
    archive = transfer.archive
    watcher.begin(archive, transfer.remote.size, transfer.bytes_done())
    again = 2  # Where bytes turn out to be wrong, or of different files.
    while True:
        try:
            if transfer.remote.ranges and transfer.remote.size is not None:
                _fetch_pieces(transfer, pool, fetcher, watcher)
            else:
                pool.submit(_fetch_whole, transfer, fetcher, watcher).result()
            _accept(transfer, watcher)
        except (ChangedError, _WrongError) as error:
            watcher.advance(archive, -transfer.bytes_done())
            transfer.discard()
            if not again:
                raise FetchError(str(error) or f"{archive.url}: changes all the time") from None
            again -= 1
            transfer.remote = fetcher.look(archive.url)
        else:
            watcher.end(archive)
            return


def _fetch_pieces(
    transfer: _Transfer, pool: ThreadPoolExecutor, fetcher: Fetcher, watcher: Watcher
) -> None:
    with transfer.part.open("ab") as file:
        file.truncate(transfer.size)
    file_number = os.open(transfer.part, os.O_WRONLY)

    def fetch(piece: int) -> None:
        def take(position: int, block: bytes) -> None:
            _write(file_number, block, position, transfer.part)
            watcher.advance(transfer.archive, len(block))

        validator = transfer.remote.validator
        fetcher.read(transfer.archive.url, *transfer.extent(piece), take, validator=validator)
        os.fdatasync(file_number)
        transfer.finish_piece(piece)

    try:
        missing = [piece for piece in transfer.pieces if piece not in transfer.done]
        futures = [pool.submit(fetch, piece) for piece in missing]
        _, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        wait(futures)  # Those that had begun still write into the file.
        for future in futures:
            if not future.cancelled():
                future.result()
    finally:
        os.close(file_number)


def _fetch_whole(transfer: _Transfer, fetcher: Fetcher, watcher: Watcher) -> None:
    """Fetch an archive in one go from a server that does not give parts of it."""
    written = 0
    with transfer.part.open("wb") as file:

        def take(position: int, block: bytes) -> None:
            nonlocal written
            watcher.advance(transfer.archive, position + len(block) - written)
            _write(file.fileno(), block, position, transfer.part)
            written = position + len(block)

        size = fetcher.read_whole(transfer.archive.url, transfer.remote.size, take)
        file.truncate(size)


def _write(file_number: int, block: bytes, position: int, path: Path) -> None:
    try:
        os.pwrite(file_number, block, position)
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror}") from None


class _WrongError(Exception):
    """The bytes are all there and are not the archive's."""


def _accept(transfer: _Transfer, watcher: Watcher) -> None:
    archive = transfer.archive
    watcher.check(archive)
    if archive.digest is not None:
        found = archive_digest(transfer.part, archive.digest.partition(":")[0])
        if found != archive.digest:
            raise _WrongError(
                f"{archive.url}: its checksum is {found}, not {archive.digest}. The server has "
                "another file; what came was discarded"
            )
    if not zipfile.is_zipfile(transfer.part):
        raise _WrongError(f"{archive.url}: not a zip archive, perhaps a page of the server")
    path = transfer.folder / archive.name
    transfer.part.replace(path)
    transfer.journal.unlink(missing_ok=True)
    if archive.digest is not None:
        checked, stamp = _stamp(path, archive.digest)
        checked.write_text(stamp)


def _stamp(path: Path, digest: str) -> tuple[Path, str]:
    """Return the note that says which file had a checksum, and what it says."""
    stat = path.stat()
    return path.with_name(f"{path.name}.checked"), f"{digest} {stat.st_size} {stat.st_mtime_ns}\n"
