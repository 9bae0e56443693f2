"""An HTTP server that injects faults into chosen requests."""

import http.server
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cocodata.download.archives import Archive, archive_digest

IMAGES, ANNOTATIONS = "/zips/val2017.zip", "/annotations/annotations_trainval2017.zip"

Fault = Callable[["Handler", bytes, range], None]
"""Responds to a request for a range of a file's content."""


@dataclass
class Behaviour:
    """How the server behaves.

    Attributes:
        faults: by path, what happens to its next requests; later ones are served normally.
        ranges: whether ranges are supported.
        etag: sent with every file.
        requests: path and Range header of each request so far.
        sent: bytes of content sent so far.
    """

    folder: Path
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    ranges: bool = True
    etag: str = '"1"'
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, path: str, *faults: Fault) -> None:
        """Inject faults into the next requests for a path."""
        self.faults.setdefault(path, deque()).extend(faults)

    def data_requests(self, path: str) -> int:
        """Return how many requests for content there were, without those for its size."""
        return sum(each == path and part != "bytes=0-0" for each, part in self.requests)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges (RFC 9110, section 14)."""

    protocol_version = "HTTP/1.1"
    behaviour: Behaviour
    partial: bool

    def do_GET(self) -> None:
        # A proxy gets complete addresses.
        path = re.sub(r"^http://[^/]+", "", self.path)
        behaviour = self.behaviour
        with behaviour.lock:
            behaviour.requests.append((path, self.headers["Range"]))
            waiting = behaviour.faults.get(path)
            fault = waiting.popleft() if waiting else None
        file = behaviour.folder / path.lstrip("/")
        if not file.is_file():
            self.status(404)
            return
        content = file.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        asked = range(len(content))
        unchanged = self.headers["If-Range"] in (None, behaviour.etag)
        self.partial = bool(match and behaviour.ranges and unchanged)
        if match and self.partial:
            asked = range(int(match[1]), min(int(match[2]) + 1, len(content)))
        (fault or serve_normally)(self, content, asked)

    def status(self, code: int, **headers: str) -> None:
        """Send a status without content."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def head(self, content: bytes, asked: range, length: int | None = None) -> None:
        """Send the headers, optionally with a wrong length."""
        self.send_response(206 if self.partial else 200)
        if self.partial:
            self.send_header("Content-Range", f"bytes {asked[0]}-{asked[-1]}/{len(content)}")
        self.send_header("Content-Length", str(len(asked) if length is None else length))
        self.send_header("ETag", self.behaviour.etag)
        self.end_headers()

    def body(self, data: bytes) -> None:
        """Send content."""
        with self.behaviour.lock:
            self.behaviour.sent += len(data)
        self.wfile.write(data)

    def disconnect(self) -> None:
        """Close the connection."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def serve_normally(handler: Handler, content: bytes, asked: range) -> None:
    handler.head(content, asked)
    handler.body(content[asked.start : asked.stop])


def disconnect_halfway(handler: Handler, content: bytes, asked: range) -> None:
    """Send half of what was announced, then close the connection."""
    handler.head(content, asked)
    handler.body(content[asked.start : asked.start + (len(asked) + 1) // 2])
    handler.disconnect()


def truncate(handler: Handler, content: bytes, asked: range) -> None:
    """Send half and announce half: the response itself is well-formed."""
    half = len(asked) // 2
    handler.head(content, asked, half)
    handler.body(content[asked.start : asked.start + half])


def announce_too_little(handler: Handler, content: bytes, asked: range) -> None:
    """Announce less than is sent."""
    handler.head(content, asked, max(1, len(asked) - 1000))
    handler.body(content[asked.start : asked.stop])
    handler.disconnect()


def announce_too_much(handler: Handler, content: bytes, asked: range) -> None:
    """Announce more than is sent."""
    handler.head(content, asked, len(asked) + 1000)
    handler.body(content[asked.start : asked.stop])
    handler.disconnect()


def corrupt(handler: Handler, content: bytes, asked: range) -> None:
    """Send the requested range with one bit flipped."""
    handler.head(content, asked)
    part = bytearray(content[asked.start : asked.stop])
    part[len(part) // 2] ^= 1
    handler.body(bytes(part))


def answer(code: int, **headers: str) -> Fault:
    """Answer with a status."""
    return lambda handler, content, asked: handler.status(code, **headers)


class FaultyServer(http.server.ThreadingHTTPServer):
    """Runs in threads of its own until closed."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.behaviour = Behaviour(folder)
        handler = type("BoundHandler", (Handler,), {"behaviour": self.behaviour})
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""


def archive_on(server: FaultyServer, path: str = IMAGES) -> Archive:
    """Return an archive of the server, with its checksum and size."""
    file = server.behaviour.folder / path.lstrip("/")
    return Archive(server.url + path, archive_digest(file, "md5"), file.stat().st_size)


def content_of(server: FaultyServer, path: str = IMAGES) -> bytes:
    """Return the content of an archive of the server."""
    return (server.behaviour.folder / path.lstrip("/")).read_bytes()
