"""Copying a packed data set to all hosts at once, from the control machine.

Hosts send pieces to each other. A host that fails is skipped and reported at the end; the next run
resumes where it stopped. The other hosts switch to the new version only after the transfer.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocodata.sync.connection import AgentConnection
from cocodata.sync.exchange import Exchange, HostResult, Show, SyncResult
from cocodata.sync.hosts import Host, control_machine
from cocodata.sync.pack import ImageMetadata
from cocodata.text import count


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
        self.result = SyncResult(metadata.version, {host.name: HostResult() for host in hosts})
        self._torrent = base64.b64encode(
            (packed / metadata.name / metadata.torrent).read_bytes()
        ).decode()
        settings = {"store": options.store, "name": metadata.name, "link": options.link}
        source = {"store": str(packed), "name": metadata.name, "link": ""}
        self._exchange = Exchange(
            [AgentConnection(host, settings) for host in hosts],
            AgentConnection(options.source, source),
            self.result,
            show,
            options.limit,
        )

    async def sync(self) -> SyncResult:
        """Copy the version to all hosts, switch to it, and remove versions that are not in use."""
        exchange = self._exchange
        try:
            status = await exchange.connect(self._arguments())
            missing = [name for name, found in status.items() if not found["complete"]]
            if missing:
                await self._transfer({name: [] for name in missing})
            await exchange.each(exchange.alive(), self._activate)
            await exchange.each(exchange.alive(), self._clean)
        finally:
            await exchange.close()
        return self.result

    async def verify(self, *, repair: bool) -> SyncResult:
        """Read the image on all hosts, and repair damaged pieces if `repair` is set."""
        exchange = self._exchange
        try:
            await exchange.connect(self._arguments())
            bad: dict[str, list[int]] = {}

            async def check(connection: AgentConnection) -> None:
                answer = await connection.request("check", **self._arguments())
                bad[connection.host.name] = answer["bad"]

            await exchange.each(exchange.alive(), check)
            damaged = {name: pieces for name, pieces in bad.items() if pieces}
            if damaged and repair:
                await self._transfer(damaged)
                await exchange.each([c for c in exchange.alive() if c.host.name in damaged], check)
            for name, pieces in damaged.items():
                result = self.result.hosts[name]
                if bad[name]:
                    result.failure = result.failure or f"{count(len(bad[name]), 'piece')} damaged"
                elif result.failure is None:
                    result.changes.append(f"{count(len(pieces), 'piece')} repaired")
        finally:
            await exchange.close()
        return self.result

    def _arguments(self) -> dict[str, Any]:
        return {
            "version": self.metadata.version,
            "size": self.metadata.size,
            "torrent": self._torrent,
        }

    async def _transfer(self, wanted: dict[str, list[int]]) -> None:
        await self._exchange.transfer(wanted, self._arguments(), "image received")

    async def _activate(self, connection: AgentConnection) -> None:
        answer = await connection.request("activate", **self._arguments())
        if answer["changed"]:
            self.result.hosts[connection.host.name].changes.append("switched to it")

    async def _clean(self, connection: AgentConnection) -> None:
        answer = await connection.request("clean", **self._arguments())
        result = self.result.hosts[connection.host.name]
        result.changes += [f"{name} removed" for name in answer["removed"]]
        result.notes += [f"{name} kept: {reason}" for name, reason in answer["kept"].items()]
