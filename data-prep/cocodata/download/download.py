"""Downloading archives: in parallel, in pieces, resuming where an earlier download stopped.

Pieces of an incomplete archive are written into NAME.part; NAME.part.json lists those that are on
disk. The file is renamed to NAME once its checksum has been verified.
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
"""Bytes per request; at most this much per connection is lost if the process is killed."""


class DownloadListener:
    """Receives the progress of a download; this one ignores it."""

    def begin(self, archive: Archive, size: int | None, present: int) -> None:
        """The download of an archive of `size` bytes starts; `present` are already on disk."""

    def advance(self, archive: Archive, amount: int) -> None:
        """More bytes have arrived; negative if some must be downloaded again."""

    def check(self, archive: Archive) -> None:
        """All bytes have arrived; the checksum is being computed."""

    def end(self, archive: Archive) -> None:
        """The archive is complete."""


@dataclass
class _Transfer:
    """The download of one archive."""

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
            # If it is lost, pieces are downloaded again.
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
    listener: DownloadListener | None = None,
) -> list[Path]:
    """Download archives into a folder; those that exist are only checked.

    If one archive fails, the others are still downloaded.

    Args:
        archives: what to download.
        folder: where to put them.
        fetcher: makes the requests.
        connections: concurrent requests.
        reserve: bytes that must stay free on the same disk.
        listener: receives progress.

    Returns:
        The archives' files, in order.

    Raises:
        DatasetError: an archive cannot be downloaded, or the disk is too small.
    """
    listener = listener or DownloadListener()
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    transfers = []
    for archive in archives:
        try:
            if not is_complete(folder / archive.name, archive, listener):
                transfers.append(_begin(archive, folder, fetcher))
        except FetchError as error:
            failures[archive.name] = str(error)
    _check_free_space(folder, transfers, reserve)

    with (
        ThreadPoolExecutor(connections) as pool,
        ThreadPoolExecutor(max(1, len(transfers))) as coordinators,
    ):
        running = {
            coordinators.submit(_fetch, transfer, pool, fetcher, listener): transfer
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
            f"{lines}\nRun the same command again to resume. An archive that you already have "
            "can be put into the folder; MIRROR= downloads from another server"
        )
    return [folder / archive.name for archive in archives]


def is_complete(path: Path, archive: Archive, listener: DownloadListener | None = None) -> bool:
    """Return whether an archive exists with the right size and checksum.

    The checksum is computed once: NAME.checked records the size and time of the file it was for.

    Raises:
        FetchError: a different file has its name.
    """
    if not path.is_file():
        return False
    stat = path.stat()
    if archive.size not in (None, stat.st_size):
        raise FetchError(
            f"the existing file has {stat.st_size:,} bytes, the archive {archive.size:,}: delete "
            "or rename the file"
        )
    if archive.digest is None:
        return True
    checked, stamp = _stamp(path, archive.digest)
    if checked.is_file() and checked.read_text() == stamp:
        return True
    if listener is not None:
        listener.check(archive)
    found = archive_digest(path, archive.digest.partition(":")[0])
    if found != archive.digest:
        raise FetchError(
            f"the existing file has the checksum {found}, not {archive.digest}: delete or rename it"
        )
    checked.write_text(stamp)
    return True


def _begin(archive: Archive, folder: Path, fetcher: Fetcher) -> _Transfer:
    """Request an archive's size, and find out how much of it is on disk."""
    remote = fetcher.probe(archive.url)
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
        # With a checksum, pieces may come from another server, because the whole is verified later.
        same = archive.digest is not None or state["validator"] == remote.validator is not None
        if (
            remote.ranges
            and same
            and (state["size"], state["piece"]) == (remote.size, PIECE)
            and transfer.part.stat().st_size == remote.size
        ):
            transfer.done.update(state["done"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # There is nothing to resume.
    return transfer


def _check_free_space(folder: Path, transfers: Sequence[_Transfer], reserve: int) -> None:
    remaining = sum((t.remote.size or 0) - t.bytes_done() for t in transfers)
    require_free_space(folder, remaining + reserve, "the archives and their unpacked files")


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Check that a disk has enough free space before writing to it.

    Raises:
        DatasetError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"{folder}: {needed / 1e9:.1f} GB are needed for {what}, {free / 1e9:.1f} GB are "
            "free. Free some space, or choose a folder on another disk"
        )


def _fetch(
    transfer: _Transfer, pool: ThreadPoolExecutor, fetcher: Fetcher, listener: DownloadListener
) -> None:
    """Download the missing part of an archive, verify all of it, and rename it."""
    archive = transfer.archive
    listener.begin(archive, transfer.remote.size, transfer.bytes_done())
    restarts = 2  # If bytes turn out to be wrong, or to belong to different files.
    while True:
        try:
            if transfer.remote.ranges and transfer.remote.size is not None:
                _fetch_pieces(transfer, pool, fetcher, listener)
            else:
                pool.submit(_fetch_whole, transfer, fetcher, listener).result()
            _accept(transfer, listener)
        except (ChangedError, _WrongContentError) as error:
            listener.advance(archive, -transfer.bytes_done())
            transfer.discard()
            if not restarts:
                raise FetchError(
                    str(error) or f"{archive.url}: keeps changing on the server"
                ) from None
            restarts -= 1
            transfer.remote = fetcher.probe(archive.url)
        else:
            listener.end(archive)
            return


def _fetch_pieces(
    transfer: _Transfer, pool: ThreadPoolExecutor, fetcher: Fetcher, listener: DownloadListener
) -> None:
    with transfer.part.open("ab") as file:
        file.truncate(transfer.size)
    file_number = os.open(transfer.part, os.O_WRONLY)

    def fetch(piece: int) -> None:
        def take(position: int, block: bytes) -> None:
            _write(file_number, block, position, transfer.part)
            listener.advance(transfer.archive, len(block))

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
        wait(futures)  # Those that have started still write into the file.
        for future in futures:
            if not future.cancelled():
                future.result()
    finally:
        os.close(file_number)


def _fetch_whole(transfer: _Transfer, fetcher: Fetcher, listener: DownloadListener) -> None:
    """Download an archive in one request from a server that does not support ranges."""
    written = 0
    with transfer.part.open("wb") as file:

        def take(position: int, block: bytes) -> None:
            nonlocal written
            listener.advance(transfer.archive, position + len(block) - written)
            _write(file.fileno(), block, position, transfer.part)
            written = position + len(block)

        size = fetcher.read_whole(transfer.archive.url, transfer.remote.size, take)
        file.truncate(size)


def _write(file_number: int, block: bytes, position: int, path: Path) -> None:
    try:
        os.pwrite(file_number, block, position)
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror}") from None


class _WrongContentError(Exception):
    """The downloaded file is complete but is not the archive."""


def _accept(transfer: _Transfer, listener: DownloadListener) -> None:
    archive = transfer.archive
    listener.check(archive)
    if archive.digest is not None:
        found = archive_digest(transfer.part, archive.digest.partition(":")[0])
        if found != archive.digest:
            raise _WrongContentError(
                f"{archive.url}: its checksum is {found}, not {archive.digest}. The server has a "
                "different file; the download was discarded"
            )
    if not zipfile.is_zipfile(transfer.part):
        raise _WrongContentError(
            f"{archive.url}: not a zip archive, perhaps a web page of the server"
        )
    path = transfer.folder / archive.name
    transfer.part.replace(path)
    transfer.journal.unlink(missing_ok=True)
    if archive.digest is not None:
        checked, stamp = _stamp(path, archive.digest)
        checked.write_text(stamp)


def _stamp(path: Path, digest: str) -> tuple[Path, str]:
    """Return the file that records a verified checksum, and its content."""
    stat = path.stat()
    return path.with_name(f"{path.name}.checked"), f"{digest} {stat.st_size} {stat.st_mtime_ns}\n"
