"""Reading files over HTTP from unreliable servers.

urllib3's own retries do not suffice: they cannot be interrupted, do not cover the body of a
response, and know nothing of the bytes that arrived, after which attempts are counted anew here.
"""

import io
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions

Result = TypeVar("Result")

ATTEMPTS = 8
"""Attempts of a request without any progress before it fails."""

_LONGEST_WAIT = 60.0  # Seconds between two attempts.
_LONGEST_RETRY_AFTER = 600.0
_TIMEOUT = urllib3.Timeout(connect=15.0, read=30.0)
_BLOCK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429})
_REASONS = {
    401: "the server requires a login",
    403: "the server refuses access",
    404: "no such file",
    410: "the file was removed",
}


class FetchError(Exception):
    """Download failed permanently."""


class ChangedError(Exception):
    """The file changed on the server."""


class _TransientError(Exception):
    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Remote:
    """What a server says about a file.

    Attributes:
        size: bytes; None if unknown.
        ranges: whether parts of it can be requested.
        validator: strong ETag or modification date, with which a later request detects a change.
    """

    size: int | None
    ranges: bool
    validator: str | None


class Fetcher:
    """Requests with retries over one pool of connections, for use by several threads.

    After a failed attempt it waits, twice as long each time, or as long as the server asks for
    (Retry-After), which then holds for all threads. The count of attempts starts again whenever
    bytes have arrived.
    """

    def __init__(
        self,
        *,
        proxy: str | None = None,
        connections: int = 8,
        stopped: threading.Event | None = None,
        note: Callable[[str], None] = lambda _: None,
        first_wait: float = 1.0,
    ) -> None:
        """Prepare; connections are opened when needed.

        Args:
            proxy: address of a proxy; None for those in the environment (http_proxy, no_proxy).
            connections: limit of concurrent requests.
            stopped: ends waits and transfers when set.
            note: called with a message for each failure that is retried.
            first_wait: seconds before the second attempt.
        """
        self.stopped = stopped or threading.Event()
        self._proxy = proxy
        self._connections = connections
        self._note = note
        self._first_wait = first_wait
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._not_before = 0.0

    def probe(self, url: str) -> Remote:
        """Request a file's size and whether the server supports ranges.

        Raises:
            FetchError: it cannot be downloaded.
        """

        def attempt() -> Remote:
            with self._request(url, {"Range": "bytes=0-0"}) as response:
                ranges = response.status == 206
                if ranges:
                    size = _content_range(response)[1]
                else:
                    length = response.headers.get("Content-Length", "")
                    size = int(length) if length.isdigit() else None
                return Remote(size, ranges, _validator(response))

        return self._retry(url, attempt)

    def read(
        self,
        url: str,
        start: int,
        end: int,
        take: Callable[[int, bytes], None],
        *,
        validator: str | None = None,
    ) -> None:
        """Read bytes `start` to `end` (exclusive) of a file from a server that supports ranges.

        Args:
            url: the file.
            start: first byte.
            end: byte after the last.
            take: called with position and bytes, in order.
            validator: from an earlier `probe`.

        Raises:
            FetchError: they cannot be downloaded.
            ChangedError: the file changed on the server.
        """
        position = start

        def attempt() -> None:
            nonlocal position
            headers = {"Range": f"bytes={position}-{end - 1}"}
            if validator is not None:
                headers["If-Range"] = validator
            with self._request(url, headers) as response:
                if response.status != 206:
                    raise ChangedError
                first, _ = _content_range(response)
                if first != position:
                    raise _TransientError(f"sent bytes from {first}, asked for {position}")
                for block in self._blocks(response):
                    wanted = block[: end - position]
                    take(position, wanted)
                    position += len(wanted)
                    if position == end:  # Even if the server announced more.
                        break
            if position < end:
                raise _TransientError(f"ended {end - position:,} bytes early")

        self._retry(url, attempt, lambda: position)

    def read_whole(self, url: str, size: int | None, take: Callable[[int, bytes], None]) -> int:
        """Read a file from a server without ranges; return its size.

        After a failure it starts again: `take` is then called with a position for a second time.

        Args:
            url: the file.
            size: expected bytes; None if unknown.
            take: called with position and bytes.

        Raises:
            FetchError: it cannot be downloaded.
        """

        def attempt() -> int:
            position = 0
            with self._request(url, {}) as response:
                for block in self._blocks(response):
                    take(position, block)
                    position += len(block)
            if size not in (None, position):
                raise _TransientError(f"{position:,} bytes arrived instead of {size:,}")
            return position

        return self._retry(url, attempt)

    def _blocks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        # read1 returns what has arrived; read would lose it if the connection breaks.
        while block := response.read1(_BLOCK):
            yield block
            if self.stopped.is_set():
                raise FetchError("stopped")

    def _retry(
        self, url: str, attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0
    ) -> Result:
        """Repeat until it succeeds, or fails ATTEMPTS times without progress."""
        failures = 0
        while True:
            reached = progress()
            try:
                self._wait_until(self._not_before)
                return attempt()
            except (_TransientError, exceptions.HTTPError) as error:
                failures = 1 if progress() > reached else failures + 1
                reason = _reason(error)
                if failures >= ATTEMPTS:
                    raise FetchError(f"{url}: {reason}, {failures} times in a row") from None
                wait = min(_LONGEST_WAIT, self._first_wait * 2.0 ** (failures - 1))
                # Threads that failed together must not retry together.
                wait *= random.uniform(0.75, 1.25)
                asked = error.wait if isinstance(error, _TransientError) else None
                if asked is not None:
                    wait = min(asked, _LONGEST_RETRY_AFTER)
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + wait)
                self._note(f"{url}: {reason}; trying again in {wait:.0f} s")
                self._wait_until(time.monotonic() + wait)

    def _wait_until(self, moment: float) -> None:
        if self.stopped.wait(max(0.0, moment - time.monotonic())):
            raise FetchError("stopped")

    @contextmanager
    def _request(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers={"Accept-Encoding": "identity", **headers},
                preload_content=False,
                retries=urllib3.Retry(total=False, redirect=5, raise_on_redirect=True),
                timeout=_TIMEOUT,
            )
        except exceptions.LocationParseError as error:
            raise FetchError(f"{url}: {error}") from None
        try:
            status = response.status
            if status in _TRANSIENT or status >= 500:
                wait = _retry_after(response)
                raise _TransientError(f"HTTP {status}", wait)
            if status not in (200, 206):
                reason = _REASONS.get(status, response.reason or "not expected")
                raise FetchError(f"{url}: HTTP {status}, {reason}")
            yield response
            # A connection whose response was read completely can be reused.
            if not response.length_remaining:
                response.release_conn()
        finally:
            response.close()

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the pool for an address: directly, or through its proxy."""
        parts = urlsplit(url)
        proxy = self._proxy
        if proxy is None and not urllib.request.proxy_bypass(parts.netloc):
            proxy = urllib.request.getproxies().get(parts.scheme)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = (
                    urllib3.PoolManager(maxsize=self._connections)
                    if proxy is None
                    else urllib3.ProxyManager(proxy, maxsize=self._connections)
                )
            return self._pools[proxy]


class RemoteFile(io.RawIOBase):
    """A seekable file on a server; only what is read is downloaded."""

    def __init__(self, fetcher: Fetcher, url: str) -> None:
        """Request the file's size.

        Raises:
            FetchError: it cannot be downloaded, or not in parts.
        """
        self._fetcher = fetcher
        self._url = url
        remote = fetcher.probe(url)
        if remote.size is None or not remote.ranges:
            raise FetchError(
                f"{url}: the server does not support ranges, which are needed to read parts of it"
            )
        self._size = remote.size
        self._validator = remote.validator
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Download as many bytes as fit into the buffer."""
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        start = self._position
        view = memoryview(buffer)

        def take(position: int, block: bytes) -> None:
            view[position - start : position - start + len(block)] = block

        try:
            self._fetcher.read(self._url, start, end, take, validator=self._validator)
        except ChangedError:
            raise FetchError(f"{self._url}: changed on the server while it was read") from None
        self._position = end
        return end - start


def _content_range(response: urllib3.BaseHTTPResponse) -> tuple[int, int | None]:
    """Return the first byte and the size of the file from the header of a partial response."""
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text)
    if match is None:
        raise _TransientError(f"a response with the invalid range {text!r}")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _validator(response: urllib3.BaseHTTPResponse) -> str | None:
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):  # W/"..." is weak: it does not identify the exact bytes.
        return etag
    return response.headers.get("Last-Modified")


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Return the seconds of the Retry-After header (RFC 9110, section 10.2.3), if it is valid."""
    try:
        return urllib3.Retry().get_retry_after(response)
    except exceptions.InvalidHeader:
        return None


_REASON_OF: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (exceptions.IncompleteRead, "the connection broke before the announced end"),
    ((exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError), "timed out"),
    (exceptions.NameResolutionError, "the name does not resolve"),
    (exceptions.ProxyError, "the proxy cannot be used"),
    (exceptions.NewConnectionError, "cannot connect"),
    (exceptions.ProtocolError, "the connection broke"),
)


def _reason(error: Exception) -> str:
    return next((text for kinds, text in _REASON_OF if isinstance(error, kinds)), str(error))
