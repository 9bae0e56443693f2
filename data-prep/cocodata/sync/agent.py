"""The program that runs on each host while hosts exchange pieces, and its commands for data sets.

It is sent over SSH together with the modules that it imports, and run from memory by the host's own
python3 (3.10 or newer). It needs only the standard library, and libtorrent to exchange pieces.
Commands arrive as lines of JSON on standard input; answers and status go to standard output. When
the input ends, or no message has come for `HEARTBEAT_TIMEOUT`, the control machine is gone: the
agent stops, and a partial image stays on disk for the next run.
"""

import base64
import importlib
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from cocodata.sync.store import HEARTBEAT_TIMEOUT, HostError, Store
from cocodata.sync.torrent import Torrent

_CHECKING = ("checking_files", "checking_resume_data", "allocating")

_EVERY_ADDRESS = (("0.0.0.0", "255.255.255.255"), ("::", ":".join(["ffff"] * 8)))  # noqa: S104


def _session_settings(command: dict[str, Any]) -> dict[str, Any]:
    """Return libtorrent's settings: no discovery of peers, and short waits."""
    return {
        "listen_interfaces": command["listen"],
        "outgoing_interfaces": command.get("outgoing", ""),
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        # Hashes authenticate the content, so encryption would only cost time.
        "in_enc_policy": 2,
        "out_enc_policy": 2,
        "allow_multiple_connections_per_ip": True,
        "upload_rate_limit": command["limit"],
        "download_rate_limit": command["limit"],
        "connections_limit": 1000,
        "unchoke_slots_limit": -1,
        "unchoke_interval": 1,
        "connection_speed": 200,
        "min_reconnect_time": 1,
        "max_failcount": 1000,
        "peer_connect_timeout": 5,
        # Seconds of requests in flight. With more, the source would be asked for pieces that other
        # hosts are about to have.
        "request_queue_time": 1,
        "peer_turnover": 0,
        "active_seeds": -1,
        "active_limit": -1,
        "alert_mask": 1 | 64,  # Errors and status.
    }


def _libtorrent() -> Any:
    try:
        return importlib.import_module("libtorrent")
    except ImportError:
        raise HostError(f"{sys.executable} has no libtorrent: install python3-libtorrent") from None


def swarm_status() -> dict[str, Any]:
    """Return this host's version of libtorrent, and from where the control machine connects."""
    return {"libtorrent": _libtorrent().version, "ssh": os.environ.get("COCO_SSH", "")}


class Swarm:
    """A running exchange of pieces with other hosts."""

    def __init__(self, folder: Path, command: dict[str, Any], *, complete: bool) -> None:
        """Join.

        Args:
            folder: where the torrent's file, or the folder of its files, is or will be.
            command: torrent (base64), peers, listen, limit (bytes a second, 0 for none), allowed
                (addresses), share (this host's index and the number of hosts), and pieces if only
                some are to be fetched.
            complete: whether everything is there, so that it only sends.
        """
        # Hosts have libtorrent 2.0, the control machine 2.1; this interface is the same in both.
        self._lt = lt = _libtorrent()
        torrent = Torrent(base64.b64decode(command["torrent"]))
        self.size = torrent.size
        pieces = set(command.get("pieces") or range(len(torrent.hashes)))
        self.complete = complete
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / torrent.name
        self.session = lt.session(_session_settings(command))
        self._restrict_peers(command["allowed"], command["limit"])

        wanted = lt.add_torrent_params()
        wanted.ti = lt.torrent_info(lt.bdecode(torrent.data))
        wanted.save_path = str(self.folder)
        flags = lt.torrent_flags
        wanted.flags &= ~(flags.auto_managed | flags.paused)
        wanted.flags |= flags.disable_dht | flags.disable_lsd | flags.disable_pex
        if self.complete:
            wanted.flags |= flags.seed_mode
        else:
            # Each host first fetches a share of its own, which it then gives to the others, so the
            # source sends each piece about once (scatter, then all-gather).
            own, hosts = command["share"]
            wanted.piece_priorities = [
                (7 if i % hosts == own else 4) if i in pieces else 0
                for i in range(len(torrent.hashes))
            ]
            if len(pieces) == len(torrent.hashes):
                wanted.storage_mode = lt.storage_mode_t.storage_mode_allocate
        self.torrent = self.session.add_torrent(wanted)
        for address, port in command["peers"]:
            self.torrent.connect_peer((address, port))

    def _restrict_peers(self, allowed: list[str], limit: int) -> None:
        """Connect only to allowed addresses, and apply the bandwidth limit to all of them."""
        blocked = self._lt.ip_filter()
        for first, last in _EVERY_ADDRESS:
            blocked.add_rule(first, last, 1)
        for address in allowed:
            blocked.add_rule(address, address, 0)
        self.session.set_ip_filter(blocked)
        if limit:
            # By default, peers in private networks are not limited.
            classes = self._lt.ip_filter()
            for first, last in _EVERY_ADDRESS:
                classes.add_rule(first, last, 1 << self._lt.session.global_peer_class_id)
            self.session.set_peer_class_filter(classes)

    def status(self) -> dict[str, Any]:
        """Return the progress, as it is sent to the control machine.

        Raises:
            HostError: it cannot continue, for example because the disk is full.
        """
        for alert in self.session.pop_alerts():
            if alert.what() in ("file_error", "torrent_error", "listen_failed"):
                raise HostError(f"{self.folder}: {alert.message()}")
        status = self.torrent.status()
        state = str(status.state)
        done = status.total_wanted_done
        return {
            "event": "progress",
            "state": "checking" if state in _CHECKING else "fetching",
            "done": done,
            "checked": status.progress_ppm,
            "wanted": status.total_wanted,
            "complete": bool(status.is_finished and done == status.total_wanted),
            "sent": status.total_payload_upload,
            "received": status.total_payload_download,
            "peers": status.num_peers,
        }

    def leave(self) -> None:
        """Flush buffered pieces to disk and stop."""
        self.session.pause()
        self.torrent.flush_cache()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.session.wait_for_alert(500)
            if any(alert.what() == "cache_flushed" for alert in self.session.pop_alerts()):
                break
        self.session.remove_torrent(self.torrent)
        del self.torrent, self.session  # Waits for the disk threads.
        for file in self.file.iterdir() if self.file.is_dir() else [self.file]:
            number = os.open(file, os.O_RDONLY)
            os.fsync(number)
            os.close(number)


class Handler(Protocol):
    """Executes commands one after the other, while a swarm runs in the background.

    Each command is a method of that name, which takes the command and returns the answer.
    """

    swarm: Swarm | None


class DatasetHandler:
    """Executes the commands of coco-sync."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Open the store; `settings` has its folder, the data set's name and the link's path."""
        self.store = Store(settings["store"], settings["name"], settings["link"])
        self.swarm: Swarm | None = None

    def status(self, command: dict[str, Any]) -> dict[str, Any]:
        """Take the lock, and return which versions this host has."""
        self.store.lock()
        return {**swarm_status(), **self.store.status(command["version"], command["size"])}

    def join(self, command: dict[str, Any]) -> dict[str, Any]:
        """Start exchanging pieces."""
        complete = self.store.image(command["version"]).is_file() and not command.get("pieces")
        folder = self.store.folder if complete else self.store.incoming
        if command.get("pieces"):
            folder = self.store.folder / "repair"
        self.swarm = Swarm(folder, command, complete=complete)
        return {}

    def leave(self, command: dict[str, Any]) -> dict[str, Any]:
        """End the exchange; rename a complete image, or copy fetched pieces into place."""
        swarm, self.swarm = self.swarm, None
        if swarm is None:
            return {}
        last = swarm.status()
        swarm.leave()
        image = self.store.image(command["version"])
        if command.get("pieces"):
            self._repair(image, swarm.file, command)
        elif last["complete"] and not swarm.complete:
            swarm.file.chmod(0o444)
            swarm.file.replace(image)
        return last

    def _repair(self, image: Path, source: Path, command: dict[str, Any]) -> None:
        """Copy fetched and checked pieces into an image in place."""
        torrent = Torrent(base64.b64decode(command["torrent"]))
        with source.open("rb") as fetched, image.open("r+b") as target:
            for piece in command["pieces"]:
                fetched.seek(piece * torrent.piece_length)
                target.seek(piece * torrent.piece_length)
                target.write(fetched.read(torrent.piece_length))
            target.flush()
            os.fsync(target.fileno())
        source.unlink()
        source.parent.rmdir()
        # Damaged pieces that were read before must not be served from the page cache.
        Path("/proc/sys/vm/drop_caches").write_text("1")

    def check(self, command: dict[str, Any]) -> dict[str, Any]:
        """Read the image and return which of its pieces are damaged."""
        torrent = Torrent(base64.b64decode(command["torrent"]))
        image = self.store.image(command["version"])
        if not image.is_file() or image.stat().st_size != torrent.size:
            raise HostError(f"{image}: missing or incomplete: run coco-sync")
        done = 0
        shown = time.monotonic()

        def advance(amount: int) -> None:
            nonlocal done, shown
            done += amount
            if time.monotonic() > shown + 1:
                shown = time.monotonic()
                send({"event": "progress", "state": "checking", "done": done})

        return {"bad": torrent.bad_pieces(image, advance)}

    def activate(self, command: dict[str, Any]) -> dict[str, Any]:
        """Mount a version and switch to it."""
        return {"changed": self.store.activate(command["version"])}

    def clean(self, command: dict[str, Any]) -> dict[str, Any]:
        """Remove other versions."""
        return self.store.clean(command["version"])


_stdout_lock = threading.Lock()


def send(message: dict[str, Any]) -> None:
    """Send a message to the control machine."""
    with _stdout_lock:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def serve(handler: Handler) -> None:
    """Execute commands until the control machine is gone."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last_message = time.monotonic()
    while time.monotonic() < last_message + HEARTBEAT_TIMEOUT:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            line = ""
        if line is None:
            return
        command = json.loads(line) if line else {}
        if command:
            last_message = time.monotonic()
        try:
            if command.get("do"):
                answer = getattr(handler, command["do"])(command)
                send({**answer, "event": "answer"})
                last_message = time.monotonic()
            elif handler.swarm is not None and not line:
                send(handler.swarm.status())
        except Exception as error:
            # Whatever the error is, only this host fails.
            text = str(error) if isinstance(error, HostError) else repr(error)
            send({"event": "failed", "message": text})
            return
