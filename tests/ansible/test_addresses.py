from types import ModuleType

import pytest


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
