"""Preflight refuses addresses and set-ups that cannot work, each with its remedy."""

import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.ansible.conftest import load


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    return load("filter_plugins/networks.py")


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    return load("filter_plugins/environment.py")


FOUR = {"node1": "10.0.0.1", "node2": "10.1.0.2"}


@pytest.mark.parametrize(
    ("addresses", "agents", "loopback", "message"),
    [
        # Several subnets and names are fine.
        (FOUR, ["node1", "node2"], {}, None),
        ({"node1": "node1", "node2": "node2"}, ["node2"], {"node1": []}, None),
        # Debian's own name of a host.
        ({"node1": "node1", "node2": "node2"}, ["node2"], {"node1": ["node1"]}, "loopback"),
        (FOUR | {"node2": "fd00::2"}, ["node1", "node2"], {}, "addresses of node2 are IPv6"),
        # A trial on one host needs no launcher for several.
        (FOUR | {"node2": "fd00::2"}, ["node2"], {}, None),
        # A cluster of one host may use any address.
        ({"node1": "localhost"}, ["node1"], {"node1": ["localhost"]}, None),
    ],
)
def test_addresses(
    networks: ModuleType,
    addresses: dict[str, str],
    agents: list[str],
    loopback: dict[str, list[str]],
    message: str | None,
) -> None:
    found = networks.address_checks(addresses, agents, loopback)
    assert [check["ok"] for check in found] == ([] if message is None else [False])
    assert all(
        message in check["message"] and "cluster_address" in check["remedy"] for check in found
    )


def test_names_of_the_loopback_interface(host_probe: ModuleType) -> None:
    assert host_probe.is_loopback("localhost")
    assert host_probe.is_loopback("127.0.1.1")
    assert host_probe.is_loopback("::1")
    assert not host_probe.is_loopback("10.0.0.1")
    assert not host_probe.is_loopback("no-such-host.invalid")


INTERFACES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["192.168.1.7", "fe80::1"],
    "ib0": ["10.9.0.7"],
    "down0": [],
}


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("", ""),
        ("ib0", "ib0"),
        ("10.9.0.0/16", "ib0"),
        ("192.168.1.0/24", "eth0"),
        ("10.9.0.7", "ib0"),
        ("fe80::/10", "eth0"),
        ("eth1", None),
        ("10.8.0.0/16", None),
    ],
)
def test_the_interface_of_trials(networks: ModuleType, wanted: str, name: str | None) -> None:
    found = networks.interface_checks(INTERFACES, "node1", wanted)
    if name is not None:
        assert networks.interface_of(INTERFACES, wanted) == name
        assert found == []
        return
    (check,) = found
    assert wanted in check["message"]
    assert "eth0 (192.168.1.7, fe80::1), ib0 (10.9.0.7), down0 (no address)" in check["remedy"]


LOOPBACK = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"]}


def _agents(**interfaces: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    return {
        host: {"interfaces": {**LOOPBACK, **own}, "wanted": ""} for host, own in interfaces.items()
    }


@pytest.mark.parametrize(
    ("node1", "node2", "names"),
    [
        ({"eth0": ["10.0.0.1"]}, {"eth0": ["10.0.0.2"]}, ["eth0"]),
        ({"eno1": ["10.0.0.1"]}, {"enp3s0": ["10.0.0.2"]}, []),
        # A second network; and a bridge, whose address every host has.
        (
            {"eno1": ["10.0.0.1"], "eth1": ["10.9.0.1"], "cni0": ["10.4.0.1"]},
            {"enp3s0": ["10.0.0.2"], "eth1": ["10.9.0.2"], "cni0": ["10.4.0.1"]},
            ["eth1"],
        ),
        # Horovod looks at IPv4 only.
        ({"eth0": ["fd00::1"]}, {"eth0": ["10.0.0.2", "fd00::2"]}, []),
        ({"br-1": ["10.5.0.1"]}, {"br-1": ["10.6.0.1"]}, []),
    ],
)
def test_names_that_horovod_would_find(
    networks: ModuleType, node1: Any, node2: Any, names: list[str]
) -> None:
    agents = _agents(node1=node1, node2=node2)
    interfaces = {host: agent["interfaces"] for host, agent in agents.items()}
    assert networks.common_interfaces(interfaces) == names
    (check,) = networks.trial_interface_checks(agents)
    assert check["ok"] == bool(names)
    if not names:
        assert "trial_interface" in check["remedy"]
        assert "node1 has docker0 (172.17.0.1)" in check["message"]
    # With a setting for each, names may differ.
    for host, own in (("node1", node1), ("node2", node2)):
        agents[host]["wanted"] = next(iter(own))
    assert networks.trial_interface_checks(agents) == []
    # A trial on one host needs none.
    assert networks.trial_interface_checks(_agents(node1=node1)) == []


def test_several_names_are_a_choice_that_nobody_made(networks: ModuleType) -> None:
    agents = _agents(
        node1={"eth0": ["10.0.0.1"], "tailscale0": ["100.64.0.1"]},
        node2={"eth0": ["10.0.0.2"], "tailscale0": ["100.64.0.2"]},
    )
    (check,) = networks.trial_interface_checks(agents)
    assert check["ok"]
    assert check["message"].startswith("eth0 or tailscale0: Horovod may take any of them")


def test_the_setting_of_some_agents_only(networks: ModuleType) -> None:
    agents = _agents(
        node1={"eno1": ["10.0.0.1"], "eth0": ["10.9.0.1"]},
        node2={"enp3s0": ["10.0.0.2"], "eth0": ["10.9.0.2"]},
    )
    agents["node1"]["wanted"] = "10.0.0.0/24"
    (check,) = networks.trial_interface_checks(agents)
    assert (check["ok"], check["host"]) == (False, "node2")
    assert (
        "a trial that node1 starts asks for its eno1, which node2 does not have"
        in (check["message"])
    )
    # Another check reports a setting that means no interface.
    agents["node1"]["wanted"] = "10.7.0.0/24"
    assert networks.trial_interface_checks(agents) == []


def test_doctor_uses_the_interface_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its all-reduce sets what a trial sets; without a name, the interface of its address."""
    program = load("roles/doctor/files/all_reduce.py")
    variables = ("GLOO_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME")
    monkeypatch.setenv("ADDRESS", "127.0.0.1")
    for wanted, used in (("eth7", "eth7"), ("", "lo")):
        monkeypatch.setenv("INTERFACE", wanted)
        for variable in variables:
            monkeypatch.setenv(variable, "another")
        program.choose_interface()
        assert [os.environ[variable] for variable in variables] == [used, used, f"={used}"]


def test_the_interfaces_of_this_machine(host_probe: ModuleType) -> None:
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    assert "127.0.0.1" in host_probe.interfaces()["lo"]


PROBE: dict[str, Any] = {"docker": {"rootless": None}, "selinux": False, "home": "ext4"}


@pytest.mark.parametrize(
    ("change", "remote_tmp", "remedy"),
    [
        ({}, "~/.ansible/tmp", None),
        ({"docker": {"rootless": 1000}}, "~/.ansible/tmp", "systemctl enable --now docker"),
        ({"selinux": True}, "~/.ansible/tmp", "SELINUX=permissive"),
        ({"home": "nfs4"}, "~/.ansible/tmp", "ansible_remote_tmp"),
        ({"home": "nfs4"}, "/var/tmp/ansible", None),
    ],
)
def test_setups(
    environment: ModuleType, change: dict[str, Any], remote_tmp: str, remedy: str | None
) -> None:
    found = environment.environment_checks(PROBE | change, "node1", remote_tmp)
    assert [remedy in check["remedy"] for check in found] == ([] if remedy is None else [True])


def test_a_rootless_engine_is_found(host_probe: ModuleType, tmp_path: Path) -> None:
    for number, (name, user) in enumerate([("bash", 0), ("dockerd", 1000)]):
        comm = tmp_path / str(number) / "comm"
        comm.parent.mkdir()
        comm.write_text(f"{name}\n")
        if os.geteuid() == 0:
            os.chown(comm, user, user)
    found = host_probe.rootless_user(tmp_path)
    assert found == (1000 if os.geteuid() == 0 else os.geteuid())
    if os.geteuid() == 0:
        # Root's own engine is the one that the cluster uses.
        os.chown(tmp_path / "1/comm", 0, 0)
        assert host_probe.rootless_user(tmp_path) is None


def test_the_data_root_of_docker_is_where_images_need_space(
    host_probe: ModuleType, checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = '{"data-root": "/mnt/docker"}'
    monkeypatch.setattr(host_probe, "_read", lambda path: written)
    assert host_probe.data_root() == "/mnt/docker"
    monkeypatch.setattr(host_probe, "_read", lambda path: "{")
    assert host_probe.data_root() is None
    full = {"exists": True, "at": "/", "device": 1, "free": 0}
    roomy = {"exists": True, "at": "/mnt", "device": 2, "free": 99 * 1024**3}
    probe = {
        "docker": {"data_root": "/mnt/docker"},
        "provisioned": False,
        "disks": {"/mnt/docker": roomy, "/var/lib/docker": full, "/store": roomy, "/data": full},
    }
    settings = {
        **{"docker_data": "/var/lib/docker", "image_disk_gb": 30, "data_disk_gb": 0},
        **{"coco_store": "/store", "data_path": "/data"},
    }
    found = checks._disks(probe, "node1", settings)
    assert [check["ok"] for check in found] == [True, True]
    assert "/mnt/docker" in found[0]["message"]
