"""Bringing a sealed data set to all hosts at once, from the control machine.

Hosts hand pieces to each other. One that fails is left behind, and named at the end; the next run
goes on where it stopped. Only when the transfer is over do the others switch to the new version.
"""

import asyncio
import base64
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cocodata.errors import DatasetError
from cocodata.sync.connection import Connection, HostFailedError
from cocodata.sync.hosts import Host, this_machine
from cocodata.sync.pack import Seal
from cocodata.text import count

_NEIGHBOURS = 48  # Connections that a host makes; more hosts need no more of them.
_STALLED = 90.0  # Seconds without a byte after which a host is given up.
_POLL = 0.1


@dataclass
class Outcome:
    """What became of one host.

    Attributes:
        failure: why it does not have the data set, or None.
        changes: what was done.
        notes: what is worth knowing, such as versions still in use.
    """

    failure: str | None = None
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What became of all of them.

    Attributes:
        version: what they were to get.
        hosts: by name.
        sent: bytes that the control machine sent.
        seconds: how long the transfer took.
    """

    version: str
    hosts: dict[str, Outcome]
    sent: int = 0
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether anything was done anywhere."""
        return any(outcome.changes for outcome in self.hosts.values())

    @property
    def failed(self) -> list[str]:
        """The names of the hosts that failed."""
        return [name for name, outcome in self.hosts.items() if outcome.failure is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "changed": self.changed, "failed": self.failed}


Show = Callable[[Sequence[Connection], Connection | None], None]
"""Shows the hosts, and the source if there is one."""


@dataclass(frozen=True)
class Options:
    """How to synchronise.

    Attributes:
        store: folder on the hosts for images and mounts.
        link: path on the hosts that trials use.
        limit: bytes a second that each host sends and receives at most; 0 for no limit.
        source: the control machine as a host.
    """

    store: str
    link: str
    limit: int = 0
    source: Host = field(default_factory=this_machine)


class Synchronisation:
    """One run of coco-sync over connected hosts."""

    def __init__(
        self, seal: Seal, packed: Path, hosts: Sequence[Host], options: Options, show: Show
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            seal: what is to be on all hosts.
            packed: the folder that it was packed into.
            hosts: where it is to be.
            options: how.
            show: called several times a second.
        """
        self.seal = seal
        self.options = options
        self.result = Result(seal.version, {host.name: Outcome() for host in hosts})
        self._packed = packed
        self._show = show
        self._torrent = base64.b64encode((packed / seal.name / seal.torrent).read_bytes()).decode()
        setting = {"store": options.store, "name": seal.name, "link": options.link}
        self.connections = [Connection(host, setting) for host in hosts]
        self._source: Connection | None = None
        self._status: dict[str, dict[str, Any]] = {}

    async def synchronise(self) -> Result:
        """Bring the version to all hosts, switch to it, and remove others that are not used."""
        try:
            await self._connect()
            missing = [c for c in self._alive() if not self._status[c.host.name]["complete"]]
            if missing:
                await self._transfer({connection.host.name: [] for connection in missing})
            await self._each(self._alive(), self._activate)
            await self._each(self._alive(), self._clean)
        finally:
            await self._close()
        return self.result

    async def verify(self, *, repair: bool) -> Result:
        """Read the image on all hosts, and mend damaged pieces if asked to."""
        try:
            await self._connect()
            bad: dict[str, list[int]] = {}

            async def check(connection: Connection) -> None:
                answer = await connection.ask("check", **self._order())
                bad[connection.host.name] = answer["bad"]

            await self._each(self._alive(), check)
            damaged = {name: pieces for name, pieces in bad.items() if pieces}
            if damaged and repair:
                await self._transfer(damaged)
                await self._each([c for c in self._alive() if c.host.name in damaged], check)
            for name, pieces in damaged.items():
                outcome = self.result.hosts[name]
                if bad[name]:
                    outcome.failure = outcome.failure or f"{count(len(bad[name]), 'piece')} damaged"
                elif outcome.failure is None:
                    outcome.changes.append(f"{count(len(pieces), 'piece')} mended")
        finally:
            await self._close()
        return self.result

    def _order(self) -> dict[str, Any]:
        return {"version": self.seal.version, "size": self.seal.size, "torrent": self._torrent}

    def _alive(self) -> list[Connection]:
        return [connection for connection in self.connections if connection.failure is None]

    async def _each(
        self,
        connections: Sequence[Connection],
        work: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """Do something on hosts at the same time; who fails is noted."""

        async def guarded(connection: Connection) -> None:
            with suppress(HostFailedError):
                await work(connection)

        working = asyncio.gather(*map(guarded, connections))
        while not working.done():
            self._show(self.connections, self._source)
            await asyncio.wait([working], timeout=_POLL)
        await working
        self._note_failures()

    def _note_failures(self) -> None:
        for connection in self.connections:
            outcome = self.result.hosts[connection.host.name]
            if connection.failure is not None and outcome.failure is None:
                outcome.failure = connection.failure

    async def _connect(self) -> None:
        async def connect(connection: Connection) -> None:
            await connection.open()
            self._status[connection.host.name] = await connection.ask("status", **self._order())

        await self._each(self.connections, connect)

    async def _transfer(self, wanted: dict[str, list[int]]) -> None:
        """Let hosts exchange pieces until those named have what they want (all, if no pieces)."""
        begin = time.monotonic()
        addresses = await self._resolve()
        members = self._alive()
        source = await self._open_source()
        allowed = sorted({*addresses.values(), *self._own_addresses(addresses.values())})
        common = {**self._order(), "allowed": allowed, "limit": self.options.limit}
        places = [(addresses[c.host.name], c.host.port) for c in members]

        async def join(connection: Connection) -> None:
            number = members.index(connection)
            order = {
                "peers": _some(places[:number], number),
                "pieces": wanted.get(connection.host.name, []),
                "share": (number, len(members)),
            }
            listening = _listening(connection.host, addresses[connection.host.name])
            await connection.ask("join", **common, **order, **listening)

        await self._each(members, join)
        fetching = [c for c in members if c.host.name in wanted]
        try:
            # It connects to the hosts, and they need not reach it.
            listening = _listening(source.host, next(iter(addresses.values()), ""))
            await source.ask("join", **common, peers=_some(places, 0), **listening)
        except HostFailedError as error:
            raise DatasetError(f"this machine cannot send: {error}") from None
        await self._watch(fetching)
        with suppress(HostFailedError):
            self.result.sent = (await source.ask("leave", **self._order())).get("sent", 0)
        self.result.seconds = time.monotonic() - begin

        async def leave(connection: Connection) -> None:
            name = connection.host.name
            await connection.ask("leave", **self._order(), pieces=wanted.get(name, []))
            if name in wanted and not wanted[name]:
                self.result.hosts[name].changes.append("image received")

        await self._each([c for c in members if c.failure is None], leave)

    async def _watch(self, fetching: Sequence[Connection]) -> None:
        """Wait until all are complete or out."""
        progress = {c.host.name: (0, time.monotonic()) for c in fetching}
        for connection in fetching:
            connection.news = {}
        while True:
            self._show(self.connections, self._source)
            self._note_failures()
            waiting = [
                c for c in fetching if c.failure is None and not c.news.get("complete", False)
            ]
            if not waiting:
                return
            now = time.monotonic()
            for connection in waiting:
                name, news = connection.host.name, connection.news
                reached = news.get("done", 0) + news.get("checked", 0)
                if reached != progress[name][0]:
                    progress[name] = reached, now
                elif now > progress[name][1] + _STALLED:
                    connection.give_up(self._why_stalled(connection))
            await asyncio.sleep(_POLL)

    def _why_stalled(self, connection: Connection) -> str:
        peers = connection.news.get("peers", 0)
        text = f"no byte came for {_STALLED:.0f} s, with {peers} hosts connected. "
        if self._source is not None and self._source.failure is not None:
            return f"{text}This machine has stopped to send: {self._source.failure}"
        return f"{text}Is TCP port {connection.host.port} open among the hosts?"

    async def _resolve(self) -> dict[str, str]:
        """Return the hosts' addresses as numbers; a host whose name is unknown is out."""
        found = {}
        for connection in self._alive():
            host = connection.host
            try:
                answers = await asyncio.get_running_loop().getaddrinfo(
                    host.address, host.port, type=socket.SOCK_STREAM
                )
                found[host.name] = str(answers[0][4][0])
            except socket.gaierror as error:
                connection.give_up(f"{host.address}: does not resolve here ({error.strerror})")
        return found

    async def _open_source(self) -> Connection:
        setting = {"store": str(self._packed), "name": self.seal.name, "link": ""}
        self._source = Connection(self.options.source, setting)
        try:
            await self._source.open()
        except HostFailedError as error:
            raise DatasetError(f"this machine cannot send: {error}") from None
        return self._source

    def _own_addresses(self, hosts: Iterable[str]) -> set[str]:
        """Return the addresses that the source comes from, as far as they can be known."""
        if self.options.source.address:
            return {self.options.source.address}
        found = {_address_towards(host) for host in hosts}
        # What the hosts see of us, past a router that translates addresses.
        found |= {status.get("ssh", "").partition(" ")[0] for status in self._status.values()}
        return found - {""}

    async def _activate(self, connection: Connection) -> None:
        answer = await connection.ask("activate", **self._order())
        if answer["changed"]:
            self.result.hosts[connection.host.name].changes.append("switched to it")

    async def _clean(self, connection: Connection) -> None:
        answer = await connection.ask("clean", **self._order())
        outcome = self.result.hosts[connection.host.name]
        outcome.changes += [f"{name} removed" for name in answer["removed"]]
        outcome.notes += [f"{name} stays: {reason}" for name, reason in answer["kept"].items()]

    async def _close(self) -> None:
        self._note_failures()
        everyone = [*self.connections, *([self._source] if self._source else [])]
        await asyncio.gather(*(connection.close() for connection in everyone))


def _listening(host: Host, address: str) -> dict[str, str]:
    """Return where a host that others know by an address listens."""
    if host.listen is None:
        every = "[::]" if ":" in address else "0.0.0.0"  # noqa: S104
        return {"listen": f"{every}:{host.port}"}
    return {"listen": f"{host.listen}:{host.port}", "outgoing": host.listen}


def _some(places: Sequence[tuple[str, int]], seed: int) -> list[tuple[str, int]]:
    """Choose whom a host connects to; the others connect to it."""
    if len(places) <= _NEIGHBOURS:
        return list(places)
    return random.Random(seed).sample(list(places), _NEIGHBOURS)


def _address_towards(address: str) -> str:
    """Return the address that a connection to another would come from."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((address, 9))
        return str(probe.getsockname()[0])
    return ""
