"""Whom the firewall admits, and what preflight says about it, from facts and settings."""

import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _ipv4(address: str) -> dict[str, str]:
    return {"address": address, "netmask": "255.255.255.0"}


FACTS: dict[str, Any] = {
    "interfaces": [
        *("lo", "eth0", "ib-0", "br-lan", "docker0", "br-0123456789ab", "veth1a", "virbr0", "down0")
    ],
    "lo": {"ipv4": _ipv4("127.0.0.1")},
    "eth0": {
        "ipv4": _ipv4("192.168.1.7"),
        "ipv4_secondaries": [_ipv4("172.20.0.9"), _ipv4("169.254.3.4")],
        "ipv6": [
            {"address": "fe80::1", "prefix": "64", "scope": "link"},
            {"address": "fd00::7", "prefix": "64", "scope": "global"},
        ],
    },
    "ib_0": {"ipv4": _ipv4("10.9.0.7")},
    # A bridge that includes a network card of the host.
    "br_lan": {"ipv4": _ipv4("10.20.0.7")},
    # Other hosts have these addresses too.
    "docker0": {"ipv4": _ipv4("172.17.0.1")},
    "br_0123456789ab": {"ipv4": _ipv4("172.18.0.1")},
    "virbr0": {"ipv4": _ipv4("192.168.122.1")},
}


def test_the_addresses_of_a_host(firewall: ModuleType) -> None:
    own = ["10.20.0.7", "10.9.0.7", "172.20.0.9", "192.168.1.7", "fd00::7"]
    assert firewall.own_addresses(FACTS) == own
    assert firewall.own_addresses({}) == []


def test_members_are_the_hosts_of_the_inventory(firewall: ModuleType) -> None:
    """A run with LIMIT= finds addresses on some hosts; those of the others were found before."""
    hosts = {
        "new": {"named": ["10.0.0.3", "new.invalid"], "found": ["10.0.0.3", "10.9.0.3"]},
        "moved": {"named": ["10.0.0.1", "localhost"], "found": ["10.0.0.1", "10.9.0.1"]},
        "elsewhere": {"named": ["10.0.0.2", "10.0.0.2"], "found": []},
        "never seen": {"named": ["fd00::4", "fe80::4"], "found": []},
    }
    before = {
        "moved": ["10.0.0.1", "10.9.0.99"],
        "elsewhere": ["10.0.0.2", "10.9.0.2"],
        "removed": ["10.0.0.7"],
    }
    assert firewall.cluster_members(hosts, before) == {
        "new": ["10.0.0.3", "10.9.0.3"],
        "moved": ["10.0.0.1", "10.9.0.1"],
        "elsewhere": ["10.0.0.2", "10.9.0.2"],
        "never seen": ["fd00::4"],
    }


def test_ports_to_open(firewall: ModuleType) -> None:
    everyone: dict[str, Any] = {"protocol": "tcp", "networks": []}
    given = [9100, "8000-8010", {"port": 53, "protocol": "udp", "from": ["10.0.0.0/8"]}]
    assert firewall.open_ports(given) == [
        {"port": "9100", **everyone},
        {"port": "8000-8010", **everyone},
        {"port": "53", "protocol": "udp", "networks": ["10.0.0.0/8"]},
    ]


@pytest.mark.parametrize(
    "entry",
    [
        *(
            0,
            70000,
            "http",
            "9-8",
            "1-2-3",
            "",
            {"protocol": "udp"},
            {"port": 1, "protocol": "icmp"},
        ),
        *({"port": 1, "network": "10.0.0.0/8"}, {"port": 1, "from": "10.0.0.0/8"}),
        {"port": 1, "from": ["office"]},
    ],
)
def test_a_wrong_port_is_a_problem_before_anything_changes(
    firewall: ModuleType, entry: Any
) -> None:
    settings = {"open_ports": [entry], "clients": ["10.0.0.0/8"], "networks": None}
    (problem,) = firewall.setting_checks(settings)
    assert not problem["ok"]
    assert "firewall_open_ports" in problem["message"] + problem["remedy"]


def test_settings_of_the_firewall(firewall: ModuleType) -> None:
    valid = {"open_ports": [9100], "clients": ["10.0.0.0/8"], "networks": None}
    assert firewall.setting_checks(valid) == []
    (wrong,) = firewall.setting_checks({**valid, "clients": ["office"]})
    assert "office" in wrong["message"]
    (old,) = firewall.setting_checks({**valid, "networks": ["10.0.0.0/24"]})
    assert "cluster_networks is no longer a setting" in old["message"]


SOCKETS = """
udp UNCONN 0 0 0.0.0.0%eth0:68 0.0.0.0:* users:(("dhclient",pid=1,fd=9))
udp UNCONN 0 0 0.0.0.0:5353 0.0.0.0:* users:(("avahi-daemon",pid=1,fd=9))
udp UNCONN 0 0 127.0.0.1:323 0.0.0.0:* users:(("chronyd",pid=2,fd=5))
udp UNCONN 0 0 0.0.0.0:51820 0.0.0.0:*
udp UNCONN 0 0 [::]:51820 [::]:*
tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=3,fd=3))
tcp LISTEN 0 128 [::]:2222 [::]:* users:(("systemd",pid=1,fd=3))
tcp LISTEN 0 4096 *:8443 *:* users:(("determined-mast",pid=4,fd=3))
tcp LISTEN 0 100 [::1]:25 [::]:* users:(("master",pid=5,fd=13))
tcp LISTEN 0 100 [::ffff:127.0.0.1]:5557 *:* users:(("java",pid=5,fd=13))
tcp LISTEN 0 4096 0.0.0.0:8080 0.0.0.0:* users:(("docker-proxy",pid=6,fd=4))
tcp LISTEN 0 4096 [::]:8081 [::]:* users:(("docker-proxy",pid=7,fd=4))
tcp LISTEN 0 128 10.0.0.17:8888 0.0.0.0:* users:(("jupyter-lab",pid=8,fd=6),("x",pid=9,fd=6))
tcp LISTEN 0 4096 *:9100 *:* users:(("node_exporter",pid=10,fd=3))
udp UNCONN 0 0 0.0.0.0:9100 0.0.0.0:* users:(("other",pid=11,fd=3))
""".strip().splitlines()


def test_what_listens_and_will_be_closed(firewall: ModuleType) -> None:
    found = firewall.closed_listeners(SOCKETS, ["22", "2222"], [8443, 5432], [9100])
    assert found == [
        "tcp 8081 (docker-proxy, over IPv6)",
        "tcp 8888 (jupyter-lab)",
        "udp 9100 (other)",
        "udp 51820 (the kernel)",
    ]


def test_a_socket_of_this_machine_is_understood(firewall: ModuleType) -> None:
    command = ["ss", "--no-header", "--listening", "--numeric", "--tcp", "--udp", "--processes"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert all("(" in found for found in firewall.closed_listeners(lines, [], [], []))


def test_preflight_names_what_will_be_closed(firewall: ModuleType) -> None:
    survey = {"ssh": ["22"], "installed": False, "sockets": SOCKETS[-2:], "firewalls": {}}
    settings: dict[str, Any] = {"services": [8443], "open_ports": []}
    closed, remedy = firewall.firewall_notes({"node1": survey, "gone": {}}, ["10.0.0.1"], settings)
    expected = "tcp 9100 (node_exporter), udp 9100 (other)"
    assert closed == f"node1: only the cluster's hosts will reach {expected}"
    assert "firewall_open_ports" in remedy
    # Closed already.
    installed = {**survey, "installed": True}
    assert firewall.firewall_notes({"node1": installed}, ["10.0.0.1"], settings) == []
    settings["open_ports"] = [9100, {"port": 9100, "protocol": "udp"}]
    assert firewall.firewall_notes({"node1": survey}, ["10.0.0.1"], settings) == []


def test_preflight_says_how_other_firewalls_coexist(firewall: ModuleType) -> None:
    ufw = "Status: active\n\nTo   Action   From\nAnywhere   ALLOW   10.0.0.1\n"
    survey = {
        **{"ssh": ["22"], "installed": True, "sockets": []},
        "firewalls": {"ufw": ufw, "firewalld": "10.0.0.1 10.0.0.2\n"},
    }
    settings: dict[str, Any] = {"services": [], "open_ports": []}
    members = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    notes = firewall.firewall_notes({"node1": survey}, members, settings)
    assert "ufw allow from 10.0.0.2, and the same for the other 1" in notes[0]
    assert "--add-source=10.0.0.3" in notes[1]
    assert len(notes) == 2
    assert firewall.firewall_notes({"node1": survey}, members[:1], settings) == []


# How cloud-init orders its second stage on Ubuntu, by way of what brings the network up.
CLOUD_INIT = """
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/true
"""


@pytest.mark.parametrize("mistaken", [False, True])
def test_the_unit_makes_no_cycle(rendered: Path, tmp_path: Path, mistaken: bool) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = (rendered / "mount/plain/firewall.service").read_text()
    assert unit.count("DefaultDependencies=no\n") == 1
    if mistaken:
        unit = unit.replace("DefaultDependencies=no\n", "")
    # Both start at boot.
    unit = unit.replace("[Unit]\n", "[Unit]\nWants=cloud-init.service\n")
    (tmp_path / "determined-firewall.service").write_text(unit)
    (tmp_path / "cloud-init.service").write_text(CLOUD_INIT)
    verify = ["systemd-analyze", "verify", "--man=no", tmp_path / "determined-firewall.service"]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert ("ordering cycle" in done.stderr) == mistaken, done.stderr
