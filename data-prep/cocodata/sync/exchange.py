"""Work on all hosts at once from the control machine, and the exchange of pieces between them.

A host that fails is skipped and reported at the end; the next run resumes where it stopped.
"""

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from cocodata.errors import DatasetError
from cocodata.sync.connection import AgentConnection, HostFailedError
from cocodata.sync.forward import Forward, answers
from cocodata.sync.hosts import Host

_Peer = TypeVar("_Peer")

_NEIGHBOURS = 48  # Connections that a host opens; enough for any number of hosts.
_SEEDERS = 8  # Hosts that prepare pieces to send.
_STALL_TIMEOUT = 90.0  # Seconds without a byte after which a host has failed.
_DIRECT_SECONDS = 3.0  # How long a connection to a host may take before SSH is tried.
_POLL = 0.1
# Whether a host has an IPv6 address -> its loopback address.
_LOOPBACK = {False: "127.0.0.1", True: "::1"}


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


class Exchange:
    """Agents on all hosts, and the source on the control machine."""

    def __init__(
        self,
        connections: Sequence[AgentConnection],
        source: AgentConnection,
        result: SyncResult,
        show: Show,
        limit: int = 0,
    ) -> None:
        """Prepare the exchange; nothing is connected yet.

        Args:
            connections: to the hosts.
            source: to the agent on the control machine that has all pieces.
            result: where changes and failures of hosts are recorded.
            show: called several times a second.
            limit: bytes a second that each host sends and receives at most; 0 for no limit.
        """
        self.connections = connections
        self.result = result
        self._source = source
        self._sending = False
        self._show = show
        self._limit = limit
        self._seen_from: set[str] = set()
        self._forwards: list[Forward] = []

    def alive(self) -> list[AgentConnection]:
        """Return the connections to the hosts that have not failed."""
        return [connection for connection in self.connections if connection.failure is None]

    async def each(
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
            self._show(self.connections, self._source if self._sending else None)
            await asyncio.wait([working], timeout=_POLL)
        await working
        self._record_failures()

    async def connect(self, arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Start the agents, and return each host's answer to `status` with these arguments."""
        found: dict[str, dict[str, Any]] = {}

        async def connect(connection: AgentConnection) -> None:
            await connection.open()
            found[connection.host.name] = await connection.request("status", **arguments)

        await self.each(self.connections, connect)
        # How the hosts see this machine, if a router translates addresses.
        self._seen_from = {status.get("ssh", "").partition(" ")[0] for status in found.values()}
        return found

    async def transfer(
        self,
        wanted: Mapping[str, list[int]],
        arguments: Mapping[str, Any],
        received: str,
        seeding: Mapping[str, Any] | None = None,
    ) -> None:
        """Let hosts exchange pieces until those in `wanted` have theirs.

        Args:
            wanted: host -> the pieces that it fetches; an empty list means all.
            arguments: of every command: the torrent (base64), and what the handlers need.
            received: how a host's result names what it has fetched, if it has fetched everything.
            seeding: further arguments for hosts that first have to prepare the pieces that they
                send, and join when they are ready; None if the others can join at once.
        """
        begin = time.monotonic()
        addresses = await self._resolve()
        others = [c for c in self.alive() if c.host.name not in wanted]
        members = self.alive() if seeding is None else [c for c in self.alive() if c not in others]
        await self._open_source()
        own_addresses = self._own_addresses(addresses.values())
        # What is forwarded by SSH comes from a host's loopback interface.
        allowed = sorted({*addresses.values(), *own_addresses, *_LOOPBACK.values()})
        common = {**arguments, "allowed": allowed, "limit": self._limit}
        peers = [(addresses[c.host.name], c.host.port) for c in members]

        async def join(connection: AgentConnection) -> None:
            number = members.index(connection)
            own = {
                "peers": _choose_peers(peers[:number], number),
                "pieces": wanted.get(connection.host.name, []),
                "share": (number, len(members)),
            }
            listening = _listening(connection.host, addresses[connection.host.name])
            await connection.request("join", **common, **own, **listening)

        async def seed(connection: AgentConnection) -> None:
            listening = _listening(connection.host, addresses[connection.host.name])
            peers_now = _choose_peers(peers, others.index(connection))
            extra = {**common, **(seeding or {}), **listening}
            await connection.request("seed", **extra, peers=peers_now)

        await self.each(members, join)
        fetching = [c for c in members if c.host.name in wanted]
        source = self._source
        try:
            # The source connects to the hosts, so they need not be able to reach it.
            listening = _listening(source.host, next(iter(addresses.values()), ""))
            reached = await self._reach([c for c in members if c.failure is None], addresses)
            await source.request("join", **common, peers=reached, **listening)
        except HostFailedError as error:
            raise DatasetError(f"this machine cannot send: {error}") from None
        seeders = others[:_SEEDERS] if seeding is not None else []
        await self.each(seeders, seed)
        await self._watch(fetching)
        with suppress(HostFailedError):
            self.result.sent = (await source.request("leave", **arguments)).get("sent", 0)
        self.result.seconds = time.monotonic() - begin

        async def leave(connection: AgentConnection) -> None:
            name = connection.host.name
            await connection.request("leave", **arguments, pieces=wanted.get(name, []))
            if name in wanted and not wanted[name]:
                self.result.hosts[name].changes.append(received)

        await self.each([c for c in [*members, *seeders] if c.failure is None], leave)

    async def _reach(
        self, members: Sequence[AgentConnection], addresses: Mapping[str, str]
    ) -> list[tuple[str, int]]:
        """Return where the source connects to: to hosts, or to their ports forwarded by SSH.

        Raises:
            HostFailedError: there is no way to any host.
        """
        chosen = _choose_peers(members, 0)
        failures = []

        async def reach(connection: AgentConnection) -> tuple[str, int] | None:
            host, address = connection.host, addresses[connection.host.name]
            if await asyncio.to_thread(answers, address, host.port, _DIRECT_SECONDS):
                return address, host.port
            try:
                loopback = _LOOPBACK[":" in address]
                forward = await asyncio.to_thread(Forward, host, loopback, host.port)
            except DatasetError as error:
                failures.append(f"{host.name} at {address}:{host.port} (by SSH: {error})")
                return None
            self._forwards.append(forward)
            return _LOOPBACK[False], forward.port

        found = await asyncio.gather(*map(reach, chosen))
        peers = [peer for peer in found if peer is not None]
        if chosen and not peers:
            raise HostFailedError(f"it does not reach {'; '.join(failures[:3])}")
        return peers

    def _record_failures(self) -> None:
        for connection in self.connections:
            result = self.result.hosts[connection.host.name]
            if connection.failure is not None and result.failure is None:
                result.failure = connection.failure

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
        if self._source.failure is not None:
            return f"{text}This machine stopped sending: {self._source.failure}"
        host = connection.host
        return (
            f"{text}Can {host.name} ({host.address}) reach TCP port {host.port} of "
            f"{self._others_than(host)}, and they its?"
        )

    def _others_than(self, host: Host) -> str:
        others = [c.host for c in self.connections if c.host.name != host.name]
        names = [f"{other.name} ({other.address})" for other in others[:3]]
        return ", ".join(names + (["the other hosts"] if len(others) > 3 else [])) or "this machine"

    async def _resolve(self) -> dict[str, str]:
        """Return the hosts' IP addresses; a host whose name does not resolve fails."""
        found = {}
        for connection in self.alive():
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

    async def _open_source(self) -> None:
        try:
            await self._source.open()
        except HostFailedError as error:
            raise DatasetError(f"this machine cannot send: {error}") from None
        self._sending = True

    def _own_addresses(self, hosts: Iterable[str]) -> set[str]:
        """Return the addresses that hosts see for the source, as far as they can be known."""
        if self._source.host.address:
            return {self._source.host.address}
        return ({_address_towards(host) for host in hosts} | self._seen_from) - {""}

    async def close(self) -> None:
        """End all agents."""
        self._record_failures()
        for forward in self._forwards:
            forward.close()
        everyone = [*self.connections, self._source]
        await asyncio.gather(*(connection.close() for connection in everyone))


def _listening(host: Host, address: str) -> dict[str, str]:
    """Return where a host with this address listens."""
    if host.listen is None:
        every = "[::]" if ":" in address else "0.0.0.0"  # noqa: S104
        return {"listen": f"{every}:{host.port}"}
    return {"listen": f"{host.listen}:{host.port}", "outgoing": host.listen}


def _choose_peers(peers: Sequence[_Peer], seed: int) -> list[_Peer]:
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
