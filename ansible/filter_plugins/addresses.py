"""Addresses and networks of hosts, as URLs, certificates and firewall rules write them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
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
        }
