"""Formats addresses and networks of hosts for URLs, certificates and firewall rules."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def bracketed(host: str) -> str:
    """Return a host as it appears in a URL: IPv6 addresses are put in brackets."""
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
    """Return the networks through which the cluster reaches a host, as CIDR.

    Usually one: that of the interface that has the host's address in the cluster. If none has it (a
    name, an address behind NAT), the network of the default route; without a default route, those
    of all interfaces except Docker's own.

    Args:
        facts: Ansible's facts of the host.
        address: The host's cluster_address.
    """
    found = {own: (interface, network) for interface, own, network in _networks(facts)}
    default = (facts.get("default_ipv4") or {}).get("address")
    for own in (address, default):
        if own in found:
            return [found[own][1]]
    # Docker's bridges connect only the containers of this host.
    docker = ("docker", "br-", "veth")
    return list(dict.fromkeys(net for name, net in found.values() if not name.startswith(docker)))


def source_address(destination: str) -> str:
    """Return this machine's address for connections to a destination; sends nothing.

    Without a route to the destination it is the loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((destination, 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _networks(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield interface, address and network of each address outside the loopback interface."""
    for name in facts.get("interfaces", ()):
        if name == "lo":
            continue
        # Ansible's facts replace hyphens in the names of interfaces with underscores.
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
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "bracketed": bracketed,
            "subject_names": subject_names,
            "networks_of": networks_of,
            "own_networks": own_networks,
            "source_address": source_address,
        }
