"""A machine on the test hosts' network that is none of the cluster's: what it reaches on them."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator

from tests.system.hosts import hosts as test_hosts
from tests.system.hosts.testing import on_host

NAME = "test-hosts-stranger"
INSIDE = test_hosts.address(190)
# An address of a documentation network (RFC 5737), in none of client_networks.
OUTSIDE = "203.0.113.9"
# Of trials: Determined's SSH servers, pickle over ZeroMQ, c10d, Gloo or NCCL.
OF_TRIALS = [12350, 12360, 12365, 29400, 40000]
PORTS = [22, 8443, 5432, 12401, *OF_TRIALS]
# What empties or changes the firewall's rules.
ATTACKS = [
    "nft flush ruleset",
    "systemctl restart nftables",
    "systemctl reload nftables",
    "nft insert rule inet determined input accept",
    "systemctl kill --signal=KILL determined-firewall; nft flush ruleset",
    # Also brings back Docker's own rules.
    "systemctl restart docker",
]
_LISTEN = """
import socket, sys, time
servers = [socket.create_server(("", port)) for port in {ports}]
time.sleep(600)
"""
_SCAN = """
import json, socket, sys
open_ports = []
for port in json.loads(sys.argv[3]):
    with socket.socket() as client:
        client.settimeout(1)
        client.bind((sys.argv[1], 0))
        if client.connect_ex((sys.argv[2], port)) == 0:
            open_ports.append(port)
print(json.dumps(open_ports))
"""


@contextlib.contextmanager
def stranger(numbers: list[int]) -> Iterator[None]:
    """Start the stranger, with addresses inside and outside the subnet, and listen on the hosts."""
    options = ["--detach", "--rm", "--label=test-hosts", f"--name={NAME}", "--cap-add=NET_ADMIN"]
    network = [f"--network={test_hosts.NETWORK}", f"--ip={INSIDE}"]
    command = [*options, *network, test_hosts.IMAGE, "sleep", "infinity"]
    _docker("run", *command)
    try:
        _docker("exec", NAME, "ip", "address", "add", f"{OUTSIDE}/32", "dev", "eth0")
        for number in numbers:
            on_host(number, f"ip route replace {OUTSIDE} dev eth0")
            listen = f"setsid python3 -c '{_LISTEN.format(ports=OF_TRIALS)}' >/dev/null 2>&1 &"
            on_host(number, listen)
        yield
    finally:
        _docker("rm", "--force", NAME)
        for number in numbers:
            # The brackets keep it from finding itself.
            on_host(number, "pkill --full '[c]reate_server' || true")


def reached(source: str, number: int, ports: list[int] = PORTS) -> set[int]:
    """Return the ports of a host that are open to one of the stranger's addresses."""
    target = test_hosts.address(number)
    found = _docker("exec", NAME, "python3", "-c", _SCAN, source, target, json.dumps(ports))
    return set(json.loads(found))


def closed_again(number: int, seconds: float = 30) -> float:
    """Wait until a host is closed to the stranger; return how long that took."""
    started = time.monotonic()
    while reached(OUTSIDE, number, [40000]):
        assert time.monotonic() < started + seconds, f"host{number} stays open"
    seconds = time.monotonic() - started
    assert reached(OUTSIDE, number) == {22}
    return seconds


def _docker(*command: str) -> str:
    done = subprocess.run(["docker", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
