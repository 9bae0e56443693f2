"""A stranger on the LAN: a network namespace with a link to this machine."""

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# From the range for benchmarks of networks (RFC 2544).
MACHINE, STRANGER = "198.18.77.1", "198.18.77.2"

# Connects to the ports that it is given; prints those that accept.
_SCAN = """
import asyncio, json, sys

address = sys.argv[1]
ports = iter(json.load(sys.stdin))
found = []

async def scan():
    for port in ports:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 3)
        except (OSError, TimeoutError):
            continue
        found.append(port)
        writer.close()

async def main():
    await asyncio.gather(*(scan() for _ in range(400)))
    print(json.dumps(sorted(found)))

asyncio.run(main())
"""


@dataclass(frozen=True)
class Stranger:
    """The name of the namespace."""

    name: str

    def open_ports(
        self, address: str = MACHINE, ports: Iterable[int] = range(1, 65536)
    ) -> set[int]:
        """Return those of the TCP ports that accept a connection from the stranger."""
        scan = subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", _SCAN, address],
            input=json.dumps([*ports]),
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return set(json.loads(scan.stdout))


@contextlib.contextmanager
def stranger() -> Iterator[Stranger]:
    """Connect a stranger to this machine, its route to everywhere else; needs root."""
    suffix = secrets.token_hex(3)
    name, ours, theirs = f"stranger-{suffix}", f"lan-{suffix}", f"wan-{suffix}"
    inside = ("ip", "-netns", name)
    for command in (
        ("ip", "netns", "add", name),
        ("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name),
        ("ip", "address", "add", f"{MACHINE}/30", "dev", ours),
        ("ip", "link", "set", ours, "up"),
        (*inside, "address", "add", f"{STRANGER}/30", "dev", theirs),
        (*inside, "link", "set", theirs, "up"),
        (*inside, "route", "add", "default", "via", MACHINE),
    ):
        subprocess.run(command, check=True)
    try:
        yield Stranger(name)
    finally:
        # Its end of the link goes with it, and so does ours.
        subprocess.run(["ip", "netns", "delete", name], check=True)
