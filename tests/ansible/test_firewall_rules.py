"""The firewall's rules in force, between hosts in network namespaces: who reaches which port.

host1 is the master's host, and an agent. Everything listens on all of its addresses, as the sockets
of a trial do.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.network_lab import Lab, LabHost, why_unavailable
from tests.ansible.rendering import ROOT

PROGRAM = ROOT / "ansible/roles/firewall/files/firewall.py"
# SSH, the master, PostgreSQL, Determined's SSH servers, pickle over ZeroMQ, c10d, Gloo or NCCL, the
# exchange of pieces, and the ports in firewall_open_ports.
PORTS = [22, 8443, 5432, 12350, 12360, 12365, 29400, 40000, 12401, 9100, 9200, 9201]
# Who comes from where, by the host's number in the lab.
PEERS = {
    "member": (2, "10.99.0.2", "fd99::2"),
    "stranger in the subnet": (3, "10.99.0.3", "fd99::3"),
    "stranger outside": (4, "203.0.113.4", "fd13::4"),
    "client": (5, "10.50.0.5", "fd50::5"),
}
REACHED = {
    "member": set(PORTS) - {5432},
    "stranger in the subnet": {22, 9100},
    "stranger outside": {22, 9100, 9200, 9201},
    "client": {22, 8443, 9100},
}
# What other programs, or people, do to the rules.
ATTACKS = [
    "flush ruleset",
    "delete table inet determined",
    "flush chain inet determined input",
    "insert rule inet determined input accept",
    "add element inet determined members4 { 10.99.0.3 }",
    # As the start and the reload of Debian's nftables.service do.
    "flush ruleset; add table inet filter; add chain inet filter input",
]
LISTEN = """
import json, selectors, socket, sys
chosen = selectors.DefaultSelector()
for port in json.loads(sys.argv[1]):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        server = socket.create_server((address, port), family=family)
        chosen.register(server, selectors.EVENT_READ, "accept")
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        datagrams.bind((address, port))
        chosen.register(datagrams, selectors.EVENT_READ, "answer")
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        if key.data == "accept":
            chosen.register(key.fileobj.accept()[0], selectors.EVENT_READ, "echo")
        elif key.data == "answer":
            key.fileobj.sendto(*key.fileobj.recvfrom(100))
        elif data := key.fileobj.recv(100):
            key.fileobj.sendall(data)
        else:
            chosen.unregister(key.fileobj)
            key.fileobj.close()
"""
SCAN = """
import concurrent.futures, json, socket, sys
kind, source, target, ports = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
def reach(port):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, getattr(socket, kind)) as s:
        s.settimeout(0.4)
        s.bind((source, 0))
        try:
            s.connect((target, port))
            s.sendall(b"hello")
            return s.recv(100) == b"hello"
        except TimeoutError:
            return False
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(json.dumps([port for port, open in zip(ports, pool.map(reach, ports)) if open]))
"""
TALK = """
import socket, sys
with socket.create_connection(("10.99.0.1", 40000), 5) as connection:
    for line in sys.stdin:
        connection.sendall(line.encode())
        print(connection.recv(100).decode(), end="", flush=True)
"""


class Firewalled:
    """A lab whose first host has the firewall's files and listens on every port."""

    def __init__(self, lab: Lab, rules: Path) -> None:
        self.lab = lab
        self.host = lab.hosts[0]
        self.rules = rules / "firewall.nft"
        self.members = rules / "members.nft"

    def load(self) -> None:
        self.host.run(f"nft --file {self.rules}")

    def program(self, *arguments: str) -> str:
        """Run the firewall's program on the host, with this test's files."""
        done = subprocess.run(
            [*self._command(), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _command(self) -> list[str]:
        run = (
            f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); "
            f"import firewall, pathlib; firewall.FILES = (pathlib.Path({str(self.members)!r}), "
            f"pathlib.Path({str(self.rules)!r})); firewall.main(*sys.argv[1:])"
        )
        return [*self.host.enter, sys.executable, "-c", run]

    @contextlib.contextmanager
    def listening(self, host: LabHost, ports: list[int]) -> Iterator[None]:
        """Listen on all addresses of a host meanwhile, and answer."""
        command = [*host.enter, sys.executable, "-c", LISTEN, json.dumps(ports)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout
            assert running.stdout.readline() == "ready\n"
            yield
            running.kill()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Run the service's program meanwhile."""
        watching = subprocess.Popen([*self._command(), "watch"], stdout=subprocess.DEVNULL)
        try:
            self.wait()
            yield
            assert watching.poll() is None
        finally:
            watching.kill()
            watching.wait()

    def wait(self) -> None:
        """Wait until a stranger is kept out; what it can reach meanwhile is seconds at most."""
        deadline = time.monotonic() + 9  # Before the regular check.
        while scan(self.lab.hosts[2], "10.99.0.3", "10.99.0.1", [22, 40000]) != {22}:
            assert time.monotonic() < deadline

    def reached(self, who: str, version: int = 4, kind: str = "SOCK_STREAM") -> set[int]:
        """Return the ports that answer to someone."""
        number, *sources = PEERS[who]
        host = self.lab.hosts[number - 1]
        target = "fd99::1" if version == 6 else "10.99.0.1"
        return scan(host, sources[version == 6], target, [*PORTS, 53], kind)


def scan(
    host: LabHost, source: str, target: str, ports: list[int], kind: str = "SOCK_STREAM"
) -> set[int]:
    """Return the ports of an address that answer to a host."""
    script = [sys.executable, "-c", SCAN, kind, source, target, json.dumps(ports)]
    done = subprocess.run([*host.enter, *script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.fixture
def firewalled(rendered: Path, tmp_path: Path) -> Iterator[Firewalled]:
    if reason := why_unavailable():
        pytest.skip(reason)
    rules = tmp_path / "rules"
    rules.mkdir()
    for name in ("firewall.nft", "members.nft"):
        text = (rendered / "lab/plain" / name).read_text()
        (rules / name).write_text(text.replace(str(rendered / "lab/plain"), str(rules)))
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(tmp_path / "lab", len(PEERS) + 1))
        host = lab.hosts[0]
        for number, four, six in PEERS.values():
            _address(lab.hosts[number - 1], four, six)
            lab.hosts[number - 1].run(
                "ip route replace 10.99.0.1 dev eth0; ip -6 route replace fd99::1 dev eth0"
            )
            host.run(f"ip route replace {four} dev eth0; ip -6 route replace {six} dev eth0")
        _address(host, "10.99.0.1", "fd99::1")
        made = Firewalled(lab, rules)
        stack.enter_context(made.listening(host, [*PORTS, 53]))
        yield made


def _address(host: LabHost, four: str, six: str) -> None:
    host.run(f"ip address replace {four}/32 dev eth0; ip address add {six}/128 dev eth0 nodad")


@pytest.mark.parametrize("version", [4, 6])
def test_who_reaches_which_port(firewalled: Firewalled, version: int) -> None:
    everything = {*PORTS, 53}
    assert {who: firewalled.reached(who, version) for who in PEERS} == dict.fromkeys(
        PEERS, everything
    )
    firewalled.load()
    reached = {who: firewalled.reached(who, version) for who in PEERS}
    assert reached == {**REACHED, "member": REACHED["member"] | {53}}
    for who in ("stranger in the subnet", "client"):
        assert firewalled.reached(who, version, "SOCK_DGRAM") == {53}
    assert firewalled.reached("member", version, "SOCK_DGRAM") == everything


def test_this_host_reaches_itself_and_others(firewalled: Firewalled) -> None:
    firewalled.load()
    with firewalled.listening(firewalled.lab.hosts[2], [7000]):
        for address, port in (("127.0.0.1", 5432), ("10.99.0.1", 5432), ("10.99.0.3", 7000)):
            script = f"import socket; socket.create_connection(('{address}', {port}), 2)"
            firewalled.host.run(f'{sys.executable} -c "{script}"')


@pytest.mark.parametrize("version", [4, 6])
def test_neighbours_are_found(firewalled: Firewalled, version: int) -> None:
    firewalled.load()
    for host in (firewalled.host, firewalled.lab.hosts[2]):
        host.run(f"ip -{version} neighbour flush all")
    assert firewalled.reached("stranger in the subnet", version) == {22, 9100}


def test_open_connections_survive_the_first_load(firewalled: Firewalled) -> None:
    """Even a stranger's: the kernel tracked no connections before."""
    command = [*firewalled.lab.hosts[2].enter, sys.executable, "-c", TALK]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as talk:
        assert talk.stdin
        assert talk.stdout
        for message in ("before\n", "after\n", "after another load\n"):
            talk.stdin.write(message)
            assert talk.stdout.readline() == message
            firewalled.load()
            assert 40000 not in firewalled.reached("stranger in the subnet")
        talk.stdin.close()
    assert talk.returncode == 0


def test_rules_that_vanish_come_back(firewalled: Firewalled) -> None:
    stranger = "stranger in the subnet"
    with firewalled.watched():
        for attack in ATTACKS:
            assert firewalled.reached(stranger) == {22, 9100}, attack
            firewalled.host.run(f"nft '{attack}'")
            firewalled.wait()


def test_a_new_member_is_admitted_and_restarts_nothing(firewalled: Firewalled) -> None:
    with firewalled.watched():
        old = firewalled.members.read_text()
        assert 40000 not in firewalled.reached("stranger in the subnet")
        firewalled.members.write_text(old.replace("10.99.0.2", "10.99.0.2, 10.99.0.3"))
        assert "the rules were changed: loaded them" in firewalled.program("apply")
        assert 40000 in firewalled.reached("stranger in the subnet")
        assert firewalled.program("apply") == ""
        firewalled.members.write_text(old)
        firewalled.program("apply")
        assert 40000 not in firewalled.reached("stranger in the subnet")


def test_state_is_that_of_the_kernel(firewalled: Firewalled) -> None:
    def state() -> tuple[str, set[str]]:
        found = json.loads(firewalled.program("state", "22", "12398"))
        assert set(found["stranger"]) == {"IPv4", "IPv6"}
        assert {reached["ssh"] for reached in found["stranger"].values()} == {"open"}
        return found["rules"], {reached["port"] for reached in found["stranger"].values()}

    links = firewalled.host.run("ip -brief link")
    assert state() == ("missing", {"open"})
    firewalled.load()
    assert state() == ("in force", {"dropped"})
    firewalled.host.run("nft insert rule inet determined input tcp dport 12398 accept")
    assert state() == ("changed", {"open"})
    firewalled.load()
    firewalled.members.write_text(firewalled.members.read_text().replace("10.99.0.2", "10.99.0.7"))
    assert state() == ("changed", {"dropped"})
    firewalled.members.unlink()
    found = json.loads(firewalled.program("state", "22", "12398"))
    assert found["rules"] == "not installed"
    assert firewalled.host.run("ip -brief link") == links


def test_containers_on_dockers_bridges_reach_their_host(firewalled: Firewalled) -> None:
    """But a bridge with another name may have a network card."""
    for bridge, network in (("br-0123456789ab", "172.30.0"), ("br-lan", "172.31.0")):
        firewalled.host.run(
            f"ip link add {bridge} type bridge; ip address add {network}.1/24 dev {bridge}; "
            f"ip link set {bridge} up"
        )
    reached = {}
    container = firewalled.lab.hosts[2]
    assert container.process
    with firewalled.watched():
        for bridge, network in (("br-0123456789ab", "172.30.0"), ("br-lan", "172.31.0")):
            firewalled.host.run(
                f"ip link add cable master {bridge} up type veth "
                f"peer name eth1 netns {container.process.pid}"
            )
            container.run(f"ip address add {network}.2/24 dev eth1; ip link set eth1 up")
            reached[bridge] = scan(container, f"{network}.2", f"{network}.1", [22, 40000])
            firewalled.host.run("ip link delete cable")
    assert reached == {"br-0123456789ab": {22, 40000}, "br-lan": {22}}


def test_the_control_machine_is_admitted_to_the_exchange_of_pieces(
    firewalled: Firewalled, rendered: Path
) -> None:
    firewalled.load()
    admissions = (rendered / "lab/plain/admissions").read_text()
    assert "10.99.0.3 . 12401 timeout 1d" in admissions
    with firewalled.watched():
        for _ in range(2):
            firewalled.host.run(f"nft --file - <<'EOF'\n{admissions}\nEOF")
            assert firewalled.reached("stranger in the subnet") == {22, 9100, 12401}
        listed = firewalled.host.run("nft list set inet determined control4")
        assert "10.99.0.3 . 12401 timeout 1d expires 23h59m" in listed
        # It is part of the rules in force, and not taken for a change of them.
        assert firewalled.program("apply") == ""
