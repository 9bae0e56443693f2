import ipaddress
from pathlib import Path
from types import ModuleType

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
    networks = ["10.0.0.7/24", "fc00::/7", "10.0.0.0/24", "10.0.0.128/25"]
    assert addresses.networks_of(networks, 4) == ["10.0.0.0/24"]
    assert addresses.networks_of(networks, 6) == ["fc00::/7"]
    with pytest.raises(ValueError, match="does not appear to be"):
        addresses.networks_of(["office"], 4)


def test_addresses_by_version(addresses: ModuleType) -> None:
    members = ["10.77.0.13", "fd00::2", "10.77.0.12", "fd00:0::2", "10.77.0.12"]
    assert addresses.addresses_of(members, 4) == ["10.77.0.12", "10.77.0.13"]
    assert addresses.addresses_of(members, 6) == ["fd00::2"]
    with pytest.raises(ValueError, match="does not appear to be"):
        addresses.addresses_of(["10.0.0.0/24"], 4)


def test_this_machines_own_address(addresses: ModuleType) -> None:
    assert addresses.source_address("127.0.0.2").startswith("127.")
    # An address without a route.
    assert addresses.source_address("255.255.255.255") == "127.0.0.1"
    assert addresses.source_address("::1") == "::1"
    own = addresses.source_address("192.0.2.1")
    assert str(ipaddress.IPv4Address(own)) == own


def test_the_single_machine_needs_no_facts_for_its_address() -> None:
    """Most playbooks gather no facts."""
    variables = yaml.safe_load((ROOT / "ansible/inventories/single.yml").read_text())["all"]["vars"]
    assert "ansible_facts" not in str(variables)
