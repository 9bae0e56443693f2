"""What runs on each host while a data set is synchronised.

It is sent over SSH with the modules that it imports, and run by the host's own python3 (3.10 or
newer) from memory: nothing but the standard library, and libtorrent where pieces are exchanged.
Commands come as lines of JSON on its standard input, answers and news go to its standard output.
When the input ends, or nothing has come for a while, the control machine is gone: then it stops,
and what has come of an image stays on disk for the next time.
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
from typing import Any

from cocodata.sync.store import SILENCE, HostError, Store
from cocodata.sync.torrent import Torrent

_CHECKING = ("checking_files", "checking_resume_data", "allocating")

_EVERY_ADDRESS = (("0.0.0.0", "255.255.255.255"), ("::", ":".join(["ffff"] * 8)))  # noqa: S104


def _session_settings(order: dict[str, Any]) -> dict[str, Any]:
    """Return libtorrent's settings: nobody is looked for, and time is not lost waiting."""
    return {
        "listen_interfaces": order["listen"],
        "outgoing_interfaces": order.get("outgoing", ""),
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        # Hashes authenticate the content; RC4 would only cost time.
        "in_enc_policy": 2,
        "out_enc_policy": 2,
        "allow_multiple_connections_per_ip": True,
        "upload_rate_limit": order["limit"],
        "download_rate_limit": order["limit"],
        "connections_limit": 1000,
        "unchoke_slots_limit": -1,
        "unchoke_interval": 1,
        "connection_speed": 200,
        "min_reconnect_time": 1,
        "max_failcount": 1000,
        "peer_connect_timeout": 5,
        # Requests ahead of what has come, in seconds. More of them would go to the source for
        # pieces that other hosts are about to have.
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


class Swarm:
    """An exchange of pieces with other hosts, in progress."""

    def __init__(self, store: Store, order: dict[str, Any]) -> None:
        """Join.

        Args:
            store: where the image is, or comes to be.
            order: torrent (base64), version, peers, listen, limit (bytes a second, 0 for none),
                allowed (addresses), share (this host's number, and of how many), and pieces where
                only some are to be fetched.
        """
        # Hosts have version 2.0, the control machine 2.1: their types differ, this does not.
        self._lt = lt = _libtorrent()
        torrent = Torrent(base64.b64decode(order["torrent"]))
        self.size = torrent.size
        self._pieces: list[int] = order.get("pieces", [])
        self.complete = store.image(order["version"]).is_file() and not self._pieces
        self.folder = store.folder if self.complete else store.incoming
        if self._pieces:
            self.folder = store.folder / "mending"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / torrent.name
        self.session = lt.session(_session_settings(order))
        self._let_in(order["allowed"], order["limit"])

        wanted = lt.add_torrent_params()
        wanted.ti = lt.torrent_info(lt.bdecode(torrent.data))
        wanted.save_path = str(self.folder)
        flags = lt.torrent_flags
        wanted.flags &= ~(flags.auto_managed | flags.paused)
        wanted.flags |= flags.disable_dht | flags.disable_lsd | flags.disable_pex
        if self.complete:
            wanted.flags |= flags.seed_mode
        elif self._pieces:
            chosen = set(self._pieces)
            wanted.piece_priorities = [int(i in chosen) for i in range(len(torrent.hashes))]
        else:
            # Each host begins with pieces of its own, of which it gives to the others: so the
            # source sends each piece about once (scatter, then all-gather).
            own, hosts = order["share"]
            wanted.piece_priorities = [
                7 if i % hosts == own else 4 for i in range(len(torrent.hashes))
            ]
            wanted.storage_mode = lt.storage_mode_t.storage_mode_allocate
        self.torrent = self.session.add_torrent(wanted)
        for address, port in order["peers"]:
            self.torrent.connect_peer((address, port))

    def _let_in(self, allowed: list[str], limit: int) -> None:
        """Speak with the addresses of the inventory only, and count all of them in the limit."""
        blocked = self._lt.ip_filter()
        for first, last in _EVERY_ADDRESS:
            blocked.add_rule(first, last, 1)
        for address in allowed:
            blocked.add_rule(address, address, 0)
        self.session.set_ip_filter(blocked)
        if limit:
            # By default peers of private networks are not limited.
            classes = self._lt.ip_filter()
            for first, last in _EVERY_ADDRESS:
                classes.add_rule(first, last, 1 << self._lt.session.global_peer_class_id)
            self.session.set_peer_class_filter(classes)

    def news(self) -> dict[str, Any]:
        """Say how far it is.

        Raises:
            HostError: it cannot go on, for example because the disk is full.
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
        """Write what is in memory to disk and stop."""
        self.session.pause()
        self.torrent.flush_cache()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.session.wait_for_alert(500)
            if any(alert.what() == "cache_flushed" for alert in self.session.pop_alerts()):
                break
        self.session.remove_torrent(self.torrent)
        del self.torrent, self.session  # Waits for the disk threads.
        number = os.open(self.file, os.O_RDONLY)
        os.fsync(number)
        os.close(number)


class Agent:
    """Carries out commands, one after the other, while a swarm goes on in the background."""

    def __init__(self, setting: dict[str, Any]) -> None:
        """Take the store's folder, the data set's name and the link's path."""
        self.store = Store(setting["store"], setting["name"], setting["link"])
        self.swarm: Swarm | None = None

    def status(self, order: dict[str, Any]) -> dict[str, Any]:
        """Take the lock, and say what is here."""
        self.store.lock()
        libtorrent = _libtorrent()
        found = self.store.status(order["version"], order["size"])
        return {**found, "libtorrent": libtorrent.version, "ssh": os.environ.get("COCO_SSH", "")}

    def join(self, order: dict[str, Any]) -> dict[str, Any]:
        """Begin to exchange pieces."""
        self.swarm = Swarm(self.store, order)
        return {}

    def leave(self, order: dict[str, Any]) -> dict[str, Any]:
        """End the exchange; a complete image gets its name, fetched pieces their place."""
        swarm, self.swarm = self.swarm, None
        if swarm is None:
            return {}
        last = swarm.news()
        swarm.leave()
        image = self.store.image(order["version"])
        if order.get("pieces"):
            self._mend(image, swarm.file, order)
        elif last["complete"] and not swarm.complete:
            swarm.file.chmod(0o444)
            swarm.file.replace(image)
        return last

    def _mend(self, image: Path, source: Path, order: dict[str, Any]) -> None:
        """Write pieces that were fetched and checked into an image, where it lies."""
        torrent = Torrent(base64.b64decode(order["torrent"]))
        with source.open("rb") as fetched, image.open("r+b") as target:
            for piece in order["pieces"]:
                fetched.seek(piece * torrent.piece_length)
                target.seek(piece * torrent.piece_length)
                target.write(fetched.read(torrent.piece_length))
            target.flush()
            os.fsync(target.fileno())
        source.unlink()
        source.parent.rmdir()
        # What was read of the damaged pieces must not be found in memory any more.
        Path("/proc/sys/vm/drop_caches").write_text("1")

    def check(self, order: dict[str, Any]) -> dict[str, Any]:
        """Read the image and say which of its pieces are not what they should be."""
        torrent = Torrent(base64.b64decode(order["torrent"]))
        image = self.store.image(order["version"])
        if not image.is_file() or image.stat().st_size != torrent.size:
            raise HostError(f"{image}: not here as a whole: run coco-sync")
        done = 0
        shown = time.monotonic()

        def advance(amount: int) -> None:
            nonlocal done, shown
            done += amount
            if time.monotonic() > shown + 1:
                shown = time.monotonic()
                tell({"event": "progress", "state": "checking", "done": done})

        return {"bad": torrent.bad_pieces(image, advance)}

    def activate(self, order: dict[str, Any]) -> dict[str, Any]:
        """Mount a version and switch to it."""
        return {"changed": self.store.activate(order["version"])}

    def clean(self, order: dict[str, Any]) -> dict[str, Any]:
        """Remove other versions."""
        return self.store.clean(order["version"])


_telling = threading.Lock()


def tell(message: dict[str, Any]) -> None:
    """Send a message to the control machine."""
    with _telling:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def serve(setting: dict[str, Any]) -> None:
    """Answer commands until the control machine is gone."""
    orders: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        orders.put(None)

    threading.Thread(target=read, daemon=True).start()
    agent = Agent(setting)
    heard = time.monotonic()
    while time.monotonic() < heard + SILENCE:
        try:
            line = orders.get(timeout=0.5)
        except queue.Empty:
            line = ""
        if line is None:
            return
        order = json.loads(line) if line else {}
        if order:
            heard = time.monotonic()
        try:
            if order.get("do"):
                answer = getattr(agent, order["do"])(order)
                tell({**answer, "event": "answer"})
                heard = time.monotonic()
            elif agent.swarm is not None and not line:
                tell(agent.swarm.news())
        except Exception as error:
            # Whatever it is, it is this host's failure and not the others'.
            text = str(error) if isinstance(error, HostError) else repr(error)
            tell({"event": "failed", "message": text})
            return
