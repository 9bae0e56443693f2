"""The interface of a host overrides what the launcher of another host gave."""

import json
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from experiments.runtime.interface import interface_to, other_hosts, use_trial_interface


def test_the_hosts_own_interface_is_used(tmp_path: Path) -> None:
    file = tmp_path / "interface"
    environment = {"HOROVOD_GLOO_IFACE": "eth9", "NCCL_SOCKET_IFNAME": "eth9"}
    file.write_text("ib0\n")
    use_trial_interface([], file, environment)
    assert environment == {
        "GLOO_SOCKET_IFNAME": "ib0",
        "HOROVOD_GLOO_IFACE": "ib0",
        "NCCL_SOCKET_IFNAME": "=ib0",
    }


def test_without_one_the_environment_stays(tmp_path: Path) -> None:
    file = tmp_path / "interface"
    environment = {"NCCL_SOCKET_IFNAME": "eth9"}
    use_trial_interface([], file, environment)
    file.write_text("\n")
    use_trial_interface([], file, environment)
    assert environment == {"NCCL_SOCKET_IFNAME": "eth9"}


# A host as trials find it: bridges of Docker, Kubernetes and libvirt, a VPN, and two network cards.
INTERFACES = {
    "lo": "127.0.0.1",
    "br-3f2a": "172.18.0.1",
    "cni0": "10.42.0.1",
    "docker0": "172.17.0.1",
    "eno1": "10.0.0.2",
    "enp65s0": "10.9.0.2",
    "tailscale0": "100.64.0.7",
    "virbr0": "192.168.122.1",
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interfaces, and a routing table in which each address leads to the network that has it."""

    class Probe:
        def __init__(self, family: int, kind: int) -> None:
            assert (family, kind) == (socket.AF_INET, socket.SOCK_DGRAM)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def connect(self, address: tuple[str, int]) -> None:
            network = address[0].rpartition(".")[0]
            found = [own for own in INTERFACES.values() if own.startswith(f"{network}.")]
            if not found:
                raise OSError("Network is unreachable")
            self.own = found[0]

        def getsockname(self) -> tuple[str, int]:
            return self.own, 40000

    addresses = {name: [SimpleNamespace(address=own)] for name, own in INTERFACES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(socket, "socket", Probe)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        (["10.0.0.3", "10.0.0.4"], "eno1"),
        (["10.9.0.3"], "enp65s0"),
        (["203.0.113.9", "10.9.0.3"], "enp65s0"),
        (["203.0.113.9"], None),
        (["127.0.0.5"], None),
        ([], None),
    ],
)
def test_without_a_choice_the_route_decides(
    peers: list[str], expected: str | None, tmp_path: Path
) -> None:
    environment: dict[str, str] = {}
    use_trial_interface(peers, tmp_path / "missing", environment)
    assert environment == (
        {"GLOO_SOCKET_IFNAME": expected, "NCCL_SOCKET_IFNAME": f"={expected}"} if expected else {}
    )


@pytest.mark.usefixtures("host")
def test_what_was_chosen_stays(tmp_path: Path) -> None:
    """By the cluster's setting, or by Horovod's launcher, which tries all hosts' interfaces."""
    file = tmp_path / "interface"
    launcher = {"HOROVOD_GLOO_IFACE": "enp65s0", "NCCL_SOCKET_IFNAME": "enp65s0"}
    environment = dict(launcher)
    use_trial_interface(["10.0.0.3"], file, environment)
    assert environment == {**launcher, "GLOO_SOCKET_IFNAME": "eno1"}
    file.write_text("enp65s0\n")
    use_trial_interface(["10.0.0.3"], file, environment)
    assert environment["NCCL_SOCKET_IFNAME"] == "=enp65s0"
    assert environment["GLOO_SOCKET_IFNAME"] == "enp65s0"


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_the_route_is_the_kernels() -> None:
    found = subprocess.run(
        ["ip", "-json", "route", "get", "192.0.2.1"], capture_output=True, text=True, check=False
    )
    expected = json.loads(found.stdout)[0]["dev"] if found.returncode == 0 else None
    assert interface_to(["192.0.2.1"]) == expected


@pytest.mark.parametrize(("rank", "expected"), [(0, ["10.0.0.3"]), (1, ["10.0.0.2"])])
def test_the_other_hosts_of_a_trial(rank: int, expected: list[str]) -> None:
    info: Any = SimpleNamespace(container_addrs=["10.0.0.2", "10.0.0.3"], container_rank=rank)
    assert other_hosts(info) == expected
    alone: Any = SimpleNamespace(container_addrs=["10.0.0.2"], container_rank=0)
    assert other_hosts(alone) == []
    one_machine: Any = SimpleNamespace(container_addrs=["10.0.0.2"] * 2, container_rank=rank)
    assert other_hosts(one_machine) == []
