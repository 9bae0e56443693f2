"""Addresses and networks of hosts, as URLs, certificates and firewall rules write them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def bracketed(host: str) -> str:
    """Return a host for a URL: IPv6 addresses stand in brackets there."""
    return f"[{host}]" if _version(host) == 6 else host


def subject_names(hosts: Iterable[str]) -> list[str]:
    """Return the subject alternative names of a certificate, for addresses and names alike."""
    return [f"{'IP' if _version(host) else 'DNS'}:{host}" for host in dict.fromkeys(hosts)]


def networks_of(networks: Iterable[str], version: int) -> list[str]:
    """Return the networks of one IP version, each as CIDR.

    Raises:
        ValueError: One of them is not a network.
    """
    parsed = [ipaddress.ip_network(network, strict=False) for network in networks]
    return [str(network) for network in dict.fromkeys(parsed) if network.version == version]


def own_networks(facts: Mapping[str, Any], address: str) -> list[str]:
    """Return the network by which the cluster reaches a host, as CIDR.

    It is that of the interface with the host's address in the cluster. Where no interface has it (a
    name, an address behind NAT), it is that of the default route, and without one (a host that has
    no way out) those of all interfaces to the outside.

    Args:
        facts: What Ansible knows of the host.
        address: The host's cluster_address.
    """
    found = {own: (interface, network) for interface, own, network in _networks(facts)}
    default = (facts.get("default_ipv4") or {}).get("address")
    for own in (address, default):
        if own in found:
            return [found[own][1]]
    # Docker's own bridges lead nowhere else.
    inside = ("docker", "br-", "veth")
    return list(dict.fromkeys(net for name, net in found.values() if not name.startswith(inside)))


def source_address(destination: str) -> str:
    """Return the address that this machine has for a destination; sends nothing.

    Without a route there it is the loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((destination, 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _networks(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Give interface, address and network of each address but the loopback interface's."""
    for name in facts.get("interfaces", ()):
        if name == "lo":
            continue
        # Ansible's facts have underscores where names of interfaces have hyphens.
        interface = facts.get(name) or facts.get(name.replace("-", "_")) or {}
        first = [interface["ipv4"]] if interface.get("ipv4") else []
        for each in (*first, *interface.get("ipv4_secondaries", ())):
            network = ipaddress.ip_network(f"{each['address']}/{each['netmask']}", strict=False)
            yield name, each["address"], str(network)
        for each in interface.get("ipv6", ()):
            if each.get("scope") != "link":
                network = ipaddress.ip_network(f"{each['address']}/{each['prefix']}", strict=False)
                yield name, each["address"], str(network)


def _version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by their names in templates."""
        return {
            "bracketed": bracketed,
            "subject_names": subject_names,
            "networks_of": networks_of,
            "own_networks": own_networks,
            "source_address": source_address,
        }
