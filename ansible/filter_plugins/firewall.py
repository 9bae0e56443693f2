"""Computes whom the firewall admits, and what it affects on a host."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Interfaces that connect a host with its own containers and virtual machines. Many hosts have the
# same addresses there.
INTERNAL = re.compile(
    r"lo|docker\d+|docker_gwbridge|br-[0-9a-f]{12}|(veth|virbr|cni|podman|lxcbr|lxdbr|cali|flannel).*"
)
# How another firewall lets an address pass.
COMMANDS = {
    "ufw": "ufw allow from {0}",
    "firewalld": "firewall-cmd --zone=trusted --add-source={0} (once more with --permanent)",
}
PROTOCOLS = ("tcp", "udp")
# Ports of which the firewall admits what a host needs: DHCP and multicast DNS.
ADMITTED = {("udp", 68), ("udp", 546), ("udp", 5353)}


def own_addresses(facts: Mapping[str, Any]) -> list[str]:
    """Return the addresses at which other machines see a host, from Ansible's facts."""
    found = []
    for name in facts.get("interfaces", ()):
        if INTERNAL.fullmatch(name):
            continue
        # Ansible's facts replace hyphens in the names of interfaces with underscores.
        interface = facts.get(name) or facts.get(name.replace("-", "_")) or {}
        first = [interface["ipv4"]] if interface.get("ipv4") else []
        for each in (*first, *interface.get("ipv4_secondaries", ()), *interface.get("ipv6", ())):
            found.append(each["address"])
    return sorted(set(filter(_is_member, found)))


def _is_member(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (
        parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified
    )


def _resolved(name: str) -> list[str]:
    """Return the addresses of a name on this machine, or an address as it is."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # A name that only SSH knows.
    addresses = [str(answer[4][0]).partition("%")[0] for answer in answers]
    return list(filter(_is_member, addresses))


def cluster_members(
    hosts: Mapping[str, Mapping[str, list[str]]], before: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Return the addresses of each host of the inventory.

    Args:
        hosts: Host -> named (addresses and names in the inventory), found (addresses found on it in
            this run; none if it does not take part).
        before: What this function returned in the last run.
    """
    names = sorted({name for host in hosts.values() for name in host["named"]})
    with ThreadPoolExecutor(32) as pool:
        resolved = dict(zip(names, pool.map(_resolved, names), strict=True))
    members = {}
    for name, host in hosts.items():
        named = [address for each in host["named"] for address in resolved[each]]
        members[name] = sorted({*named, *(host["found"] or before.get(name, []))})
    return members


def open_ports(setting: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the entries of firewall_open_ports with port, protocol and networks each.

    Raises:
        ValueError: An entry is not a port, a range of ports or a mapping with one.
    """
    found = []
    for entry in setting:
        given = dict(entry) if isinstance(entry, Mapping) else {"port": entry}
        port, protocol = str(given.pop("port", "")), given.pop("protocol", "tcp")
        networks = given.pop("from", [])
        bounds = port.split("-")
        numbers = [int(bound) for bound in bounds if bound.isdigit() and 0 < int(bound) < 65536]
        valid = len(numbers) == len(bounds) <= 2 and numbers == sorted(set(numbers))
        if given or not valid or protocol not in PROTOCOLS or isinstance(networks, str):
            raise ValueError(
                f"{entry!r} in firewall_open_ports is neither a port, a range such as 8000-8010, "
                "nor {port: ..., protocol: tcp or udp, from: [networks]}"
            )
        for network in networks:
            ipaddress.ip_network(network, strict=False)
        found.append({"port": port, "protocol": protocol, "networks": list(networks)})
    return found


def setting_checks(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluate the settings of the firewall, in the form of the checks of hosts.

    Args:
        settings: open_ports (firewall_open_ports), clients (client_networks), and networks: the
            setting cluster_networks of earlier versions, if the inventory still has it.
    """
    problems = []
    try:
        open_ports(settings["open_ports"])
        for network in settings["clients"]:
            ipaddress.ip_network(network, strict=False)
    except (TypeError, ValueError) as error:
        problems.append((str(error), "correct client_networks or firewall_open_ports"))
    if settings["networks"] is not None:
        problems.append(
            (
                "cluster_networks is no longer a setting: only the cluster's own hosts reach each "
                "other's ports",
                "remove it from the inventory; firewall_open_ports opens a port to other networks",
            )
        )
    return [
        {"host": "all", "name": "firewall", "ok": False, "message": message, "remedy": remedy}
        for message, remedy in problems
    ]


def closed_listeners(
    sockets: Iterable[str], ssh: Iterable[int], services: Iterable[Any], opened: Iterable[Any]
) -> list[str]:
    """Return what listens on a host and will be open to members only, such as `tcp 8888 (jupyter)`.

    Args:
        sockets: Lines of `ss --no-header --listening --numeric --tcp --udp --processes`.
        ssh: Ports of the SSH server.
        services: Ports and ranges of ports of the cluster's own services.
        opened: firewall_open_ports.
    """
    own = [("tcp", _bounds(port)) for port in (*ssh, *services)]
    own += [(entry["protocol"], _bounds(entry["port"])) for entry in open_ports(opened)]
    found: dict[tuple[str, int], str] = {}
    for line in sockets:
        protocol, _, _, _, local, *rest = line.split(maxsplit=6)
        host, _, port = local.rpartition(":")
        host = host.strip("[]").partition("%")[0]
        process = (re.findall(r'\(\("([^"]+)"', rest[-1] if rest else "") or ["the kernel"])[0]
        number = int(port) if port.isdigit() else 0
        if _is_local(host) or (protocol, number) in ADMITTED or not number:
            continue
        if any(protocol == kind and low <= number <= high for kind, (low, high) in own):
            continue
        if process == "docker-proxy":
            # A published port: Docker forwards IPv4 to the container, past these rules.
            if ":" not in host and host != "*":
                continue
            process += ", over IPv6"
        found.setdefault((protocol, number), process)
    return [f"{protocol} {port} ({process})" for (protocol, port), process in sorted(found.items())]


def _bounds(port: Any) -> tuple[int, int]:
    low, _, high = str(port).partition("-")
    return int(low), int(high or low)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.removeprefix("::ffff:")).is_loopback
    except ValueError:
        return False  # `*`: all addresses.


def firewall_notes(
    surveys: Mapping[str, Mapping[str, Any]], members: Iterable[str], settings: Mapping[str, Any]
) -> list[str]:
    """Say what the firewall will change for what runs on the hosts already.

    Args:
        surveys: Host -> what `firewall.py survey` printed; empty if it could not be run.
        members: Addresses of the cluster's hosts.
        settings: services (ports of the cluster's own) and open_ports (firewall_open_ports).
    """
    notes, closed = [], False
    for host, survey in surveys.items():
        if not survey or survey["installed"]:
            continue
        listening = closed_listeners(
            survey["sockets"], survey["ssh"], settings["services"], settings["open_ports"]
        )
        if listening:
            closed = True
            listed = ", ".join(listening)
            notes.append(f"{host}: only the cluster's hosts will reach {listed}")
    if closed:
        notes.append(
            "To keep one of these open to others too, stop now and add it to firewall_open_ports. "
            "Connections that are open already stay open"
        )
    for host, survey in surveys.items():
        for name, admitted in (survey or {}).get("firewalls", {}).items():
            missing = [address for address in members if address not in admitted.split()]
            if missing:
                others = f", and the same for the other {len(missing) - 1}" if missing[1:] else ""
                notes.append(
                    f"{host}: {name} is active and stays so, and a connection must pass both "
                    "firewalls. For the cluster's hosts: "
                    f"{COMMANDS[name].format(missing[0])}{others}"
                )
    return notes


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "own_addresses": own_addresses,
            "cluster_members": cluster_members,
            "open_ports": open_ports,
            "firewall_setting_checks": setting_checks,
            "firewall_notes": firewall_notes,
        }
