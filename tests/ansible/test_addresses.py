import ipaddress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_hosts_in_urls(addresses: ModuleType) -> None:
    assert addresses.bracketed("10.0.0.1") == "10.0.0.1"
    assert addresses.bracketed("fd00::1") == "[fd00::1]"
    assert addresses.bracketed("node1.lab") == "node1.lab"


def test_names_of_certificates(addresses: ModuleType) -> None:
    names = addresses.subject_names(["node1", "10.0.0.1", "node1", "fd00::1"])
    assert names == ["DNS:node1", "IP:10.0.0.1", "IP:fd00::1"]


def test_networks_by_version(addresses: ModuleType) -> None:
    networks = ["10.0.0.7/24", "fc00::/7", "10.0.0.0/24"]
    assert addresses.networks_of(networks, 4) == ["10.0.0.0/24"]
    assert addresses.networks_of(networks, 6) == ["fc00::/7"]
    with pytest.raises(ValueError, match="does not appear to be"):
        addresses.networks_of(["office"], 4)


def _ipv4(address: str, netmask: str = "255.255.255.0") -> dict[str, str]:
    return {"address": address, "netmask": netmask}


FACTS: dict[str, Any] = {
    "interfaces": ["lo", "eth0", "ib-0", "br-lan", "docker0", "down0"],
    "default_ipv4": {"address": "192.168.1.7"},
    "lo": {"ipv4": _ipv4("127.0.0.1", "255.0.0.0")},
    "eth0": {
        "ipv4": _ipv4("192.168.1.7"),
        "ipv4_secondaries": [_ipv4("172.20.0.9", "255.255.0.0")],
        "ipv6": [
            {"address": "fe80::1", "prefix": "64", "scope": "link"},
            {"address": "fd00::7", "prefix": "64", "scope": "global"},
        ],
    },
    "ib_0": {"ipv4": _ipv4("10.9.0.7", "255.255.252.0")},
    "br_lan": {"ipv4": _ipv4("10.20.0.7")},
    "docker0": {"ipv4": _ipv4("172.17.0.1", "255.255.0.0")},
}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.168.1.7", "192.168.1.0/24"),
        # The network of the address, not of the default route.
        ("10.9.0.7", "10.9.0.0/22"),
        ("172.20.0.9", "172.20.0.0/16"),
        # A bridge that includes a network card of the host.
        ("10.20.0.7", "10.20.0.0/24"),
        ("fd00::7", "fd00::/64"),
        # A name; an address behind NAT.
        ("node1", "192.168.1.0/24"),
        ("203.0.113.5", "192.168.1.0/24"),
    ],
)
def test_the_network_of_an_address(addresses: ModuleType, address: str, network: str) -> None:
    assert addresses.own_networks(FACTS, address) == [network]


def test_networks_of_a_host_without_a_default_route(addresses: ModuleType) -> None:
    facts = {**FACTS, "default_ipv4": {}}
    assert addresses.own_networks(facts, "10.9.0.7") == ["10.9.0.0/22"]
    outside = ["192.168.1.0/24", "172.20.0.0/16", "fd00::/64", "10.9.0.0/22"]
    assert addresses.own_networks(facts, "node1") == outside


def test_this_machines_own_address(addresses: ModuleType) -> None:
    assert addresses.source_address("127.0.0.2").startswith("127.")
    # An address without a route.
    assert addresses.source_address("255.255.255.255") == "127.0.0.1"
    own = addresses.source_address("192.0.2.1")
    assert str(ipaddress.IPv4Address(own)) == own


def test_the_single_machine_needs_no_facts_for_its_address() -> None:
    """Most playbooks gather no facts."""
    variables = yaml.safe_load((ROOT / "ansible/inventories/single.yml").read_text())["all"]["vars"]
    assert "ansible_facts" not in str(variables)
