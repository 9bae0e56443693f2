"""Docker's API for the agents of a cluster on one machine: keeps trials off the host's network.

Determined puts a trial over several agents on the host's network, where its ports are open to the
LAN, and publishes ports of all others. Whoever reaches a trial's ports runs code in it. So agents
reach Docker's socket only through this program, which changes three things:

- A new container joins the network TRIAL_NETWORK, whichever was asked for, and publishes no port.
- A container's description says that its exposed ports are at its own address in that network.
  Determined tells the other processes of the trial to meet there.
- A new container with GPUs also gets the driver's video libraries, which a GPU's JPEG engines need.
  Determined asks for `compute` and `utility` alone, which engines before 29.2 put above the image's
  NVIDIA_DRIVER_CAPABILITIES.

Everything else is passed on as it is. Each connection serves one request.
"""

import asyncio
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ENGINE = "/var/run/docker.sock"
# In a volume that the agents mount.
SOCKET = "/run/engine/docker.sock"

_CREATE = re.compile(r"POST (/v[\d.]+)?/containers/create[? ]")
_INSPECT = re.compile(r"GET (/v[\d.]+)?/containers/[^/? ]+/json[? ]")


def on_network(request: dict[str, Any], network: str) -> dict[str, Any]:
    """Return the request for a container with this network as its only one, and no open port."""
    host = {
        **(request.get("HostConfig") or {}),
        "NetworkMode": network,
        "PublishAllPorts": False,
        "PortBindings": {},
    }
    return {**request, "HostConfig": host, "NetworkingConfig": {}}


def with_video(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request for a container whose NVIDIA GPUs come with the video libraries."""
    host = request.get("HostConfig") or {}
    devices = [
        {
            **device,
            # Alternatives, each of which is a list of capabilities.
            "Capabilities": [
                [*names, "video"] if "gpu" in names and "video" not in names else names
                for names in device.get("Capabilities") or []
            ],
        }
        if device.get("Driver") == "nvidia"
        else device
        for device in host.get("DeviceRequests") or []
    ]
    if not devices:
        return request
    return {**request, "HostConfig": {**host, "DeviceRequests": devices}}


def with_own_ports(description: dict[str, Any]) -> dict[str, Any]:
    """Return a container's description with its exposed ports at its own address."""
    settings = description["NetworkSettings"]
    networks = (settings.get("Networks") or {}).values()
    addresses = [network["IPAddress"] for network in networks if network.get("IPAddress")]
    ports = {
        port: [{"HostIp": address, "HostPort": port.partition("/")[0]} for address in addresses]
        for port in description["Config"].get("ExposedPorts") or {}
    }
    return {**description, "NetworkSettings": {**settings, "Ports": ports}}


class TrialNetwork:
    """Passes requests from agents to Docker, and keeps the containers on one network.

    Args:
        network: Name of the network.
        engine: Path of Docker's socket.
    """

    def __init__(self, network: str, engine: str = ENGINE) -> None:
        self.network = network
        self.engine = engine

    async def serve(self, socket: Path) -> None:
        """Answer requests on a socket for ever."""
        socket.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._connected, socket)
        finally:
            os.umask(umask)
        async with server:
            await server.serve_forever()

    async def remove_trials(self) -> None:
        """Remove the trials on the network.

        An agent takes a trial for failed if the connection on which it waits for the trial's end
        breaks, and starts it anew without removing it. So what is left of an earlier run of this
        program must not go on.
        """
        filters = {"network": [self.network], "label": ["ai.determined.container.type"]}
        query = urlencode({"all": 1, "filters": json.dumps(filters)})
        _, found = await self._answer(f"GET /containers/json?{query} HTTP/1.0\r\n\r\n".encode())
        for container in json.loads(found):
            await self._answer(
                f"DELETE /containers/{container['Id']}?force=1 HTTP/1.0\r\n\r\n".encode()
            )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request, *fields = head.split("\r\n")[:-2]
                # Docker closes the connection after its answer: each request comes by here.
                fields = [f for f in fields if not f.lower().startswith("connection:")]
                fields.append("Connection: close")
                if _CREATE.match(request):
                    await self._create(request, fields, reader, writer)
                elif _INSPECT.match(request):
                    await self._inspect(request, fields, writer)
                else:
                    await self._pass_on(_head(request, fields), reader, writer)
            finally:
                writer.close()

    async def _create(
        self,
        request: str,
        fields: list[str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        lengths = [f for f in fields if f.lower().startswith("content-length:")]
        if len(lengths) != 1:
            writer.write(b"HTTP/1.1 411 Length Required\r\nConnection: close\r\n\r\n")
            return
        fields.remove(lengths[0])
        body = await reader.readexactly(int(lengths[0].partition(":")[2]))
        changed = json.dumps(with_video(on_network(json.loads(body), self.network))).encode()
        fields.append(f"Content-Length: {len(changed)}")
        await self._pass_on(_head(request, fields) + changed, reader, writer)

    async def _inspect(self, request: str, fields: list[str], writer: asyncio.StreamWriter) -> None:
        # The answer to HTTP/1.0 comes in one piece, which ends with the connection.
        request = request.removesuffix("HTTP/1.1") + "HTTP/1.0"
        head, body = await self._answer(_head(request, fields))
        status, *answers = head.decode("latin-1").split("\r\n")
        if status.split()[1] == "200":
            body = json.dumps(with_own_ports(json.loads(body))).encode()
            answers = [f for f in answers if not f.lower().startswith("content-length:")]
            answers.append(f"Content-Length: {len(body)}")
        writer.write(_head(status, answers) + body)
        await writer.drain()

    async def _answer(self, request: bytes) -> tuple[bytes, bytes]:
        """Send a request to Docker; return the head and the body of its answer."""
        reader, writer = await asyncio.open_unix_connection(self.engine)
        try:
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head, body
        finally:
            writer.close()

    async def _pass_on(
        self, start: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass bytes in both directions until one side closes."""
        engine_reader, engine_writer = await asyncio.open_unix_connection(self.engine)
        try:
            engine_writer.write(start)
            directions = [
                asyncio.create_task(_copy(reader, engine_writer)),
                asyncio.create_task(_copy(engine_reader, writer)),
            ]
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        finally:
            engine_writer.close()


def _head(first: str, fields: list[str]) -> bytes:
    return ("\r\n".join([first, *fields]) + "\r\n\r\n").encode("latin-1")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def main() -> None:
    """Serve the agents of the cluster whose network TRIAL_NETWORK names."""
    trials = TrialNetwork(os.environ["TRIAL_NETWORK"])
    await trials.remove_trials()
    await trials.serve(Path(SOCKET))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
