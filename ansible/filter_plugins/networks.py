"""Evaluates the addresses of a cluster's hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

Check = dict[str, Any]

# The beginnings of names of bridges that lead to nothing but a host's own containers and machines.
INNER = ("lo", "docker", "br-", "veth", "virbr", "vnet", "lxcbr", "lxdbr", "incusbr")


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
        there = _listed(interfaces)
        remedy = f"set trial_interface of {host} to the name or the network of one of: {there}"
        return [_check(host, str(error), remedy, "trial_interface")]
    return []


def common_interfaces(interfaces: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Return the names of the interfaces over which Horovod's launcher may connect hosts.

    It takes a name only if every host has an interface of this name with an IPv4 address, and
    reaches the next host's over its own of the same name (horovod/runner/driver/driver_service.py
    and match_intf in horovod/runner/common/util/network.py). Whether hosts reach each other is not
    known here, only that an address which several have leads to none of the others.

    Args:
        interfaces: Host -> name -> addresses.
    """
    named = [
        {name: four for name, all_ in own.items() if (four := _ipv4(all_))}
        for own in interfaces.values()
    ]
    names = set.intersection(*map(set, named)) if named else set()
    found = []
    for name in sorted(names):
        addresses = [address for own in named for address in own[name]]
        if len(set(addresses)) == len(addresses) and not name.startswith(INNER):
            found.append(name)
    return found


def trial_interface_checks(agents: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Evaluate whether the launchers of a trial on several hosts find an interface on each.

    With `trial_interface`, every process uses that of its own host, whatever its name. Without it,
    Horovod needs one name for all; torch.distributed does not.

    Args:
        agents: Agent -> `interfaces` (name -> addresses) and `wanted` (its trial_interface).
    """
    name = "interface of trials"
    try:
        chosen = {
            host: interface_of(agent["interfaces"], agent["wanted"])
            for host, agent in agents.items()
        }
    except ValueError:
        return []  # interface_checks reports it.
    unset = [host for host, interface in chosen.items() if not interface]
    if len(agents) < 2 or not unset:
        return []
    shown = {
        host: _listed({key: own for key, own in agent["interfaces"].items() if _ipv4(own)})
        for host, agent in agents.items()
    }
    remedy = (
        "set trial_interface of all agents to the network that connects them (such as "
        "10.0.0.0/24), or of each to its interface: then the names may differ"
    )
    for host in unset:
        foreign = {
            other: interface
            for other, interface in chosen.items()
            if interface and interface not in agents[host]["interfaces"]
        }
        for other, interface in foreign.items():
            message = (
                f"trial_interface is not set here, and a trial that {other} starts asks for its "
                f"{interface}, which {host} does not have: {shown[host]}"
            )
            return [_check(host, message, remedy, name)]
    common = common_interfaces({host: agent["interfaces"] for host, agent in agents.items()})
    if not common:
        listed = "; ".join(f"{host} has {text}" for host, text in shown.items())
        message = f"Horovod finds no interface of the same name on all agents: {listed}"
        return [_check("all", message, remedy, name)]
    message = common[0]
    if len(common) > 1:
        message = (
            f"{' or '.join(common)}: Horovod may take any of them, so set trial_interface if they "
            "are not equally fast"
        )
    return [{**_check("all", message, "", name), "ok": True}]


def _ipv4(addresses: list[str]) -> list[str]:
    return [address for address in addresses if not _is_ipv6(address)]


def _listed(interfaces: Mapping[str, list[str]]) -> str:
    return ", ".join(
        f"{name} ({', '.join(addresses) or 'no address'})"
        for name, addresses in interfaces.items()
        if name != "lo"
    )


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
            "common_interfaces": common_interfaces,
            "trial_interface_checks": trial_interface_checks,
        }
