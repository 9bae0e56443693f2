"""Keeps the token of a login, so that the next command need not log in.

The master takes 1.7 s to check a password (bcrypt at cost 15). A token lasts for seven days, and
ends when its user's password is changed.
"""

import contextlib
import hashlib
import time
from pathlib import Path

from cocodata.files import write_atomically

# Enough of the seven days is left to follow an experiment.
_MAX_AGE_SECONDS = 24 * 3600.0


class TokenFile:
    """A file, readable by its owner only, that holds the token of one login.

    Args:
        path: The file.
        login: What the token was given for: master, user and password. With any other, the file is
            as good as missing.
    """

    def __init__(self, path: Path, *login: str) -> None:
        self._path = path
        self._login = hashlib.sha256(repr(login).encode()).hexdigest()

    def read(self) -> str | None:
        """Return the token, or None without one that is younger than a day."""
        try:
            age = time.time() - self._path.stat().st_mtime
            login, token = self._path.read_text().split()
        except (OSError, ValueError):
            return None
        return token if login == self._login and 0 <= age < _MAX_AGE_SECONDS else None

    def write(self, token: str) -> None:
        """Keep a token, where the folder can be written to."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, f"{self._login} {token}\n", mode=0o600)
