"""Evaluates the addresses of a cluster's hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

Check = dict[str, Any]


def address_checks(
    addresses: Mapping[str, str], agents: list[str], loopback: Mapping[str, list[str]]
) -> list[Check]:
    """Evaluate the addresses at which hosts reach each other, in the form of the checks of hosts.

    Args:
        addresses: Host -> its cluster_address; only those of a cluster of several hosts.
        agents: The hosts that train.
        loopback: Host -> the addresses among these that it takes for its own loopback interface.
    """
    if len(addresses) < 2:
        return []
    names = {address: host for host, address in addresses.items()}
    found = [
        _check(
            host,
            f"the name {address} leads to {host}'s loopback interface, so others could not be told "
            f"where {names[address]} is",
            f"set cluster_address of {names[address]} to its IP address, or correct the line of "
            f"{address} in /etc/hosts on {host}",
        )
        for host, taken in loopback.items()
        for address in taken
    ]
    six = [host for host in agents if _is_ipv6(addresses.get(host, ""))]
    if six and len(agents) > 1:
        found.append(
            _check(
                "all",
                f"the addresses of {', '.join(six)} are IPv6: the launchers of Determined cannot "
                "start a trial on several hosts with them",
                "give the hosts IPv4 addresses too, of a private network for example, and set "
                "cluster_address to these",
            )
        )
    return found


def interface_of(interfaces: Mapping[str, list[str]], wanted: str) -> str:
    """Return the interface that trial_interface means on a host; empty if it is.

    Args:
        interfaces: Name -> addresses of each interface of the host.
        wanted: A name, or a network of which the interface has an address.

    Raises:
        ValueError: The host has no such interface.
    """
    if not wanted or wanted in interfaces:
        return wanted
    try:
        network = ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        network = None
    for name, addresses in interfaces.items():
        if network and any(ipaddress.ip_address(address) in network for address in addresses):
            return name
    raise ValueError(f"no interface is or has an address in {wanted}")


def interface_checks(interfaces: Mapping[str, list[str]], host: str, wanted: str) -> list[Check]:
    """Evaluate whether a host has the interface that its trials are to use."""
    try:
        interface_of(interfaces, wanted)
    except ValueError as error:
        there = ", ".join(
            f"{name} ({', '.join(addresses) or 'no address'})"
            for name, addresses in interfaces.items()
            if name != "lo"
        )
        remedy = f"set trial_interface of {host} to the name or the network of one of: {there}"
        return [_check(host, str(error), remedy, "trial_interface")]
    return []


def _is_ipv6(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 6
    except ValueError:
        return False


def _check(host: str, message: str, remedy: str, name: str = "addresses") -> Check:
    return {"host": host, "name": name, "ok": False, "message": message, "remedy": remedy}


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "address_checks": address_checks,
            "interface_of": interface_of,
            "interface_checks": interface_checks,
        }
