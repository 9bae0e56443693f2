"""Copying a packed data set to all hosts at once, from the control machine.

Hosts send pieces to each other. A host that fails is skipped and reported at the end; the next run
resumes where it stopped. The other hosts switch to the new version only after the transfer.
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
from cocodata.sync.connection import AgentConnection, HostFailedError
from cocodata.sync.hosts import Host, control_machine
from cocodata.sync.pack import ImageMetadata
from cocodata.text import count

_NEIGHBOURS = 48  # Connections that a host opens; enough for any number of hosts.
_STALL_TIMEOUT = 90.0  # Seconds without a byte after which a host has failed.
_POLL = 0.1


@dataclass
class HostResult:
    """The result for one host.

    Attributes:
        failure: why it does not have the data set, or None.
        changes: what was changed on it.
        notes: what is worth knowing, such as versions still in use.
    """

    failure: str | None = None
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class SyncResult:
    """The results for all hosts.

    Attributes:
        version: the version that they should have.
        hosts: their results, by name.
        sent: bytes that the control machine sent.
        seconds: how long the transfer took.
    """

    version: str
    hosts: dict[str, HostResult]
    sent: int = 0
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether anything was changed on any host."""
        return any(result.changes for result in self.hosts.values())

    @property
    def failed(self) -> list[str]:
        """The names of the hosts that failed."""
        return [name for name, result in self.hosts.items() if result.failure is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {**asdict(self), "changed": self.changed, "failed": self.failed}


Show = Callable[[Sequence[AgentConnection], AgentConnection | None], None]
"""Shows the hosts, and the source if there is one."""


@dataclass(frozen=True)
class SyncOptions:
    """Settings of a run of coco-sync.

    Attributes:
        store: folder on the hosts for images and mounts.
        link: path on the hosts that trials use.
        limit: bytes a second that each host sends and receives at most; 0 for no limit.
        source: the control machine as a host.
    """

    store: str
    link: str
    limit: int = 0
    source: Host = field(default_factory=control_machine)


class SyncRun:
    """One run of coco-sync."""

    def __init__(
        self,
        metadata: ImageMetadata,
        packed: Path,
        hosts: Sequence[Host],
        options: SyncOptions,
        show: Show,
    ) -> None:
        """Prepare the run; nothing is connected yet.

        Args:
            metadata: of the version to copy.
            packed: the folder that it was packed into.
            hosts: the hosts to copy it to.
            options: settings.
            show: called several times a second.
        """
        self.metadata = metadata
        self.options = options
        self.result = SyncResult(metadata.version, {host.name: HostResult() for host in hosts})
        self._packed = packed
        self._show = show
        self._torrent = base64.b64encode(
            (packed / metadata.name / metadata.torrent).read_bytes()
        ).decode()
        settings = {"store": options.store, "name": metadata.name, "link": options.link}
        self.connections = [AgentConnection(host, settings) for host in hosts]
        self._source: AgentConnection | None = None
        self._host_status: dict[str, dict[str, Any]] = {}

    async def sync(self) -> SyncResult:
        """Copy the version to all hosts, switch to it, and remove versions that are not in use."""
        try:
            await self._connect()
            missing = [c for c in self._alive() if not self._host_status[c.host.name]["complete"]]
            if missing:
                await self._transfer({connection.host.name: [] for connection in missing})
            await self._each(self._alive(), self._activate)
            await self._each(self._alive(), self._clean)
        finally:
            await self._close()
        return self.result

    async def verify(self, *, repair: bool) -> SyncResult:
        """Read the image on all hosts, and repair damaged pieces if `repair` is set."""
        try:
            await self._connect()
            bad: dict[str, list[int]] = {}

            async def check(connection: AgentConnection) -> None:
                answer = await connection.request("check", **self._arguments())
                bad[connection.host.name] = answer["bad"]

            await self._each(self._alive(), check)
            damaged = {name: pieces for name, pieces in bad.items() if pieces}
            if damaged and repair:
                await self._transfer(damaged)
                await self._each([c for c in self._alive() if c.host.name in damaged], check)
            for name, pieces in damaged.items():
                result = self.result.hosts[name]
                if bad[name]:
                    result.failure = result.failure or f"{count(len(bad[name]), 'piece')} damaged"
                elif result.failure is None:
                    result.changes.append(f"{count(len(pieces), 'piece')} repaired")
        finally:
            await self._close()
        return self.result

    def _arguments(self) -> dict[str, Any]:
        return {
            "version": self.metadata.version,
            "size": self.metadata.size,
            "torrent": self._torrent,
        }

    def _alive(self) -> list[AgentConnection]:
        return [connection for connection in self.connections if connection.failure is None]

    async def _each(
        self,
        connections: Sequence[AgentConnection],
        work: Callable[[AgentConnection], Awaitable[None]],
    ) -> None:
        """Run `work` on all given hosts concurrently, and record failures."""

        async def guarded(connection: AgentConnection) -> None:
            with suppress(HostFailedError):
                await work(connection)

        working = asyncio.gather(*map(guarded, connections))
        while not working.done():
            self._show(self.connections, self._source)
            await asyncio.wait([working], timeout=_POLL)
        await working
        self._record_failures()

    def _record_failures(self) -> None:
        for connection in self.connections:
            result = self.result.hosts[connection.host.name]
            if connection.failure is not None and result.failure is None:
                result.failure = connection.failure

    async def _connect(self) -> None:
        async def connect(connection: AgentConnection) -> None:
            await connection.open()
            self._host_status[connection.host.name] = await connection.request(
                "status", **self._arguments()
            )

        await self._each(self.connections, connect)

    async def _transfer(self, wanted: dict[str, list[int]]) -> None:
        """Let hosts exchange pieces until those in `wanted` have theirs; no pieces means all."""
        begin = time.monotonic()
        addresses = await self._resolve()
        members = self._alive()
        source = await self._open_source()
        allowed = sorted({*addresses.values(), *self._own_addresses(addresses.values())})
        common = {**self._arguments(), "allowed": allowed, "limit": self.options.limit}
        peers = [(addresses[c.host.name], c.host.port) for c in members]

        async def join(connection: AgentConnection) -> None:
            number = members.index(connection)
            arguments = {
                "peers": _choose_peers(peers[:number], number),
                "pieces": wanted.get(connection.host.name, []),
                "share": (number, len(members)),
            }
            listening = _listening(connection.host, addresses[connection.host.name])
            await connection.request("join", **common, **arguments, **listening)

        await self._each(members, join)
        fetching = [c for c in members if c.host.name in wanted]
        try:
            # The source connects to the hosts, so they need not be able to reach it.
            listening = _listening(source.host, next(iter(addresses.values()), ""))
            await source.request("join", **common, peers=_choose_peers(peers, 0), **listening)
        except HostFailedError as error:
            raise DatasetError(f"this machine cannot send: {error}") from None
        await self._watch(fetching)
        with suppress(HostFailedError):
            self.result.sent = (await source.request("leave", **self._arguments())).get("sent", 0)
        self.result.seconds = time.monotonic() - begin

        async def leave(connection: AgentConnection) -> None:
            name = connection.host.name
            await connection.request("leave", **self._arguments(), pieces=wanted.get(name, []))
            if name in wanted and not wanted[name]:
                self.result.hosts[name].changes.append("image received")

        await self._each([c for c in members if c.failure is None], leave)

    async def _watch(self, fetching: Sequence[AgentConnection]) -> None:
        """Wait until all are complete or have failed."""
        progress = {c.host.name: (0, time.monotonic()) for c in fetching}
        for connection in fetching:
            connection.status = {}
        while True:
            self._show(self.connections, self._source)
            self._record_failures()
            waiting = [
                c for c in fetching if c.failure is None and not c.status.get("complete", False)
            ]
            if not waiting:
                return
            now = time.monotonic()
            for connection in waiting:
                name, status = connection.host.name, connection.status
                reached = status.get("done", 0) + status.get("checked", 0)
                if reached != progress[name][0]:
                    progress[name] = reached, now
                elif now > progress[name][1] + _STALL_TIMEOUT:
                    connection.fail(self._why_stalled(connection))
            await asyncio.sleep(_POLL)

    def _why_stalled(self, connection: AgentConnection) -> str:
        peers = connection.status.get("peers", 0)
        text = f"no data arrived for {_STALL_TIMEOUT:.0f} s, with {peers} hosts connected. "
        if self._source is not None and self._source.failure is not None:
            return f"{text}This machine stopped sending: {self._source.failure}"
        return f"{text}Is TCP port {connection.host.port} open between the hosts?"

    async def _resolve(self) -> dict[str, str]:
        """Return the hosts' IP addresses; a host whose name does not resolve fails."""
        found = {}
        for connection in self._alive():
            host = connection.host
            try:
                answers = await asyncio.get_running_loop().getaddrinfo(
                    host.address, host.port, type=socket.SOCK_STREAM
                )
                found[host.name] = str(answers[0][4][0])
            except socket.gaierror as error:
                connection.fail(
                    f"{host.address}: does not resolve on this machine ({error.strerror})"
                )
        return found

    async def _open_source(self) -> AgentConnection:
        settings = {"store": str(self._packed), "name": self.metadata.name, "link": ""}
        self._source = AgentConnection(self.options.source, settings)
        try:
            await self._source.open()
        except HostFailedError as error:
            raise DatasetError(f"this machine cannot send: {error}") from None
        return self._source

    def _own_addresses(self, hosts: Iterable[str]) -> set[str]:
        """Return the addresses that hosts see for the source, as far as they can be known."""
        if self.options.source.address:
            return {self.options.source.address}
        found = {_address_towards(host) for host in hosts}
        # How the hosts see this machine, if a router translates addresses.
        found |= {status.get("ssh", "").partition(" ")[0] for status in self._host_status.values()}
        return found - {""}

    async def _activate(self, connection: AgentConnection) -> None:
        answer = await connection.request("activate", **self._arguments())
        if answer["changed"]:
            self.result.hosts[connection.host.name].changes.append("switched to it")

    async def _clean(self, connection: AgentConnection) -> None:
        answer = await connection.request("clean", **self._arguments())
        result = self.result.hosts[connection.host.name]
        result.changes += [f"{name} removed" for name in answer["removed"]]
        result.notes += [f"{name} kept: {reason}" for name, reason in answer["kept"].items()]

    async def _close(self) -> None:
        self._record_failures()
        everyone = [*self.connections, *([self._source] if self._source else [])]
        await asyncio.gather(*(connection.close() for connection in everyone))


def _listening(host: Host, address: str) -> dict[str, str]:
    """Return where a host with this address listens."""
    if host.listen is None:
        every = "[::]" if ":" in address else "0.0.0.0"  # noqa: S104
        return {"listen": f"{every}:{host.port}"}
    return {"listen": f"{host.listen}:{host.port}", "outgoing": host.listen}


def _choose_peers(peers: Sequence[tuple[str, int]], seed: int) -> list[tuple[str, int]]:
    """Choose which peers a host connects to; the others connect to it."""
    if len(peers) <= _NEIGHBOURS:
        return list(peers)
    return random.Random(seed).sample(list(peers), _NEIGHBOURS)


def _address_towards(address: str) -> str:
    """Return the local address of a connection to another address; empty if unknown."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((address, 9))
        return str(probe.getsockname()[0])
    return ""
