"""Sending images to all hosts at once, each the layers that its engine lacks.

Hosts exchange pieces of layers as they do for data sets. Hosts that have an image already get
layers out of their engines, and send them to those that lack them.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cocodata.sync.connection import SWARM_MODULES, AgentConnection, Program
from cocodata.sync.exchange import Exchange, HostResult, Show, SyncResult
from cocodata.sync.hosts import Host, control_machine
from cocodata.sync.torrent import Torrent
from container_images.archive import ContainerImage
from container_images.export import BlobCache

PROGRAM = Program(
    (*SWARM_MODULES, *(f"container_images.{name}" for name in ("archive", "engine", "host"))),
    ("container_images.host", "ImageHandler"),
)


@dataclass(frozen=True)
class SendOptions:
    """Settings of a run.

    Attributes:
        folder: folder on the hosts for layers on their way.
        limit: bytes a second that each host sends and receives at most; 0 for no limit.
        source: the control machine as a host.
    """

    folder: str
    limit: int = 0
    source: Host = field(default_factory=control_machine)


class SendRun:
    """One run.

    Attributes:
        result: what was changed on each host, and what failed.
        states: host -> image -> ok, missing or different, before anything is changed.
    """

    def __init__(
        self,
        cache: BlobCache,
        wanted: Mapping[str, Sequence[ContainerImage]],
        hosts: Sequence[Host],
        options: SendOptions,
        show: Show,
    ) -> None:
        """Prepare the run; nothing is connected yet.

        Args:
            cache: the layers on this machine.
            wanted: host -> the images that it needs.
            hosts: the hosts.
            options: settings.
            show: called several times a second.
        """
        self.states: dict[str, dict[str, str]] = {}
        self.result = SyncResult("", {host.name: HostResult() for host in hosts})
        self._cache = cache
        self._images = list({image for images in wanted.values() for image in images})

        def settings(images: Sequence[ContainerImage]) -> dict[str, Any]:
            return {"folder": options.folder, "images": [image.to_dict() for image in images]}

        self._exchange = Exchange(
            [AgentConnection(host, settings(wanted[host.name]), PROGRAM) for host in hosts],
            AgentConnection(
                options.source,
                {"folder": str(cache.folder), "images": [], "source": True},
                PROGRAM,
            ),
            self.result,
            show,
            options.limit,
        )

    async def check(self) -> SyncResult:
        """Compare the images of all hosts, and change nothing."""
        try:
            answers = await self._exchange.connect({"check": True})
            self.states = {host: answer["states"] for host, answer in answers.items()}
        finally:
            await self._exchange.close()
        return self.result

    async def send(self) -> SyncResult:
        """Bring every host's engine to have its images."""
        exchange = self._exchange
        try:
            answers = await exchange.connect({})
            self.states = {host: answer["states"] for host, answer in answers.items()}
            lacking = {host: answer["missing"] for host, answer in answers.items()}
            await self._transfer({host: layers for host, layers in lacking.items() if layers})
            different = {
                host for host, states in self.states.items() if set(states.values()) != {"ok"}
            }
            changed = [c for c in exchange.alive() if c.host.name in different]
            await exchange.each(changed, self._load)
        finally:
            await exchange.close()
        return self.result

    async def _transfer(self, lacking: Mapping[str, Sequence[str]]) -> None:
        layers = {layer for missing in lacking.values() for layer in missing}
        if not layers:
            return
        self._cache.require(self._images, layers)
        data = self._cache.torrent(sorted(layers))
        torrent = Torrent(data)
        await self._exchange.transfer(
            {host: torrent.pieces_of(missing) for host, missing in lacking.items()},
            {"torrent": base64.b64encode(data).decode()},
            "",
            seeding={},
        )

    async def _load(self, connection: AgentConnection) -> None:
        answer = await connection.request("load")
        self.result.hosts[connection.host.name].changes += answer["changes"]
