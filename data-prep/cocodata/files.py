"""Files that are complete or absent, whatever interrupts the writing, and their hashes.

Everything is written under a temporary name first and then renamed, so that no reader ever finds
half a file. Imports only the standard library.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(
    path: Path, content: str | bytes, *, durable: bool = True, mode: int = 0o666
) -> None:
    """Write a small file.

    Args:
        path: the file; its folder must exist.
        content: bytes, or text to be encoded as UTF-8.
        durable: whether the content must be on disk, not only in memory, before the old file is
            replaced.
        mode: permissions of the new file, restricted by the umask.

    Raises:
        OSError: it cannot be written; an existing file is left as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path, *, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it is renamed to `path` at the end.

    If the block raises, the temporary file is deleted and an existing file is left as it was.

    Args:
        path: the file.
        folder: where the temporary file goes, on the same file system; that of `path` if None.
    """
    # The end of the name stays, because some libraries choose a format by it.
    temporary = (folder or path.parent) / f".{os.getpid()}.{path.name}"
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder to fill; it takes the place of `path` at the end.

    If the block raises, the temporary folder is deleted and an existing one is left as it was.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    replaced = path.with_name(f".{os.getpid()}.{path.name}.replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(replaced)
        try:
            temporary.rename(path)
        except OSError:
            if replaced.exists():
                replaced.rename(path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file's content in hexadecimal.

    Args:
        path: the file.
        algorithm: a name that hashlib knows.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
