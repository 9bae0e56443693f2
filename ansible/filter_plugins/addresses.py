"""Formats addresses and networks of hosts for URLs, certificates and firewall rules."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any


def bracketed(host: str) -> str:
    """Return a host as it appears in a URL: IPv6 addresses are put in brackets."""
    return f"[{host}]" if _version(host) == 6 else host


def subject_names(hosts: Iterable[str]) -> list[str]:
    """Return the subject alternative names of a certificate, for addresses and names alike."""
    return [f"{'IP' if _version(host) else 'DNS'}:{host}" for host in dict.fromkeys(hosts)]


def networks_of(networks: Iterable[str], version: int) -> list[str]:
    """Return the networks of one IP version, each as CIDR and none within another.

    Raises:
        ValueError: One of them is not a network.
    """
    parsed = [ipaddress.ip_network(network, strict=False) for network in networks]
    wanted: Any = [network for network in parsed if network.version == version]
    return [str(network) for network in ipaddress.collapse_addresses(wanted)]


def addresses_of(addresses: Iterable[str], version: int) -> list[str]:
    """Return the addresses of one IP version, each once and in order.

    Neighbours stay apart: a set of exact addresses takes no networks.

    Raises:
        ValueError: One of them is not an address.
    """
    parsed = {ipaddress.ip_address(address) for address in addresses}
    wanted: Any = [address for address in parsed if address.version == version]
    return [str(address) for address in sorted(wanted)]


def source_address(destination: str) -> str:
    """Return this machine's address for connections to a destination; sends nothing.

    Without a route to the destination it is the loopback address.
    """
    family = socket.AF_INET6 if _version(destination) == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((destination, 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


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
            "addresses_of": addresses_of,
            "networks_of": networks_of,
            "source_address": source_address,
        }
