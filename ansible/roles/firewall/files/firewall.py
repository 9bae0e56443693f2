#!/usr/bin/python3
"""The firewall of a host: puts the rules of its files in force, keeps them so, and tests them.

    firewall.py survey            what a firewall would affect on this host, as JSON
    firewall.py apply             put the rules in force unless they are; prints what it did
    firewall.py watch             do so whenever rules or interfaces change, and every ten seconds
    firewall.py state SSH PORT    the rules in force, and what a stranger reaches, as JSON

Runs as root on hosts, with the standard library of Python 3.10.
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = (Path("/etc/determined/members.nft"), Path("/etc/determined/firewall.nft"))
TABLE = ("inet", "determined")
LIST = ("nft", "--json", "--stateless", "list", "table", *TABLE)
# The bridges of Docker's own networks, whatever other bridges there are.
BRIDGE = re.compile(r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}")
# Sets whose elements come and go while the rules are in force.
RUNTIME_SETS = {"bridges", "control4", "control6"}
INTERVAL_SECONDS = 10.0
# One check for a burst of events.
SETTLE_SECONDS = 0.3
CONNECT_SECONDS = 0.5
# Addresses that no network should use (RFC 5737, RFC 3849): this host's and the stranger's.
STRANGERS = {
    "IPv4": (socket.AF_INET, "198.51.100.1", "198.51.100.2", "30"),
    "IPv6": (socket.AF_INET6, "2001:db8:5::1", "2001:db8:5::2", "126"),
}
# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/rtnetlink.h, linux/sched.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NETLINK_ROUTE, _LINKS = 0, 1
_NETLINK_NETFILTER, _NFTABLES = 12, 7
_CLONE_NEWNET = 0x40000000


class FirewallError(Exception):
    """The rules cannot be read or loaded; the message is nft's."""


def run(*command: str, given: str | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        FirewallError: It is missing or failed.
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FirewallError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise FirewallError((done.stderr or done.stdout).strip() or f"{command[0]} failed")
    return done.stdout


def rules(listing: str) -> list[Any]:
    """Return the objects of a table, without what changes while it is in force."""
    found = []
    for entry in json.loads(listing)["nftables"]:
        ((kind, content),) = entry.items()
        if kind == "metainfo":
            continue
        content.pop("handle", None)
        if kind == "set":
            kept = [] if content["name"] in RUNTIME_SETS else content.pop("elem", [])
            content["elem"] = sorted(kept, key=json.dumps)
        for part in content.get("expr", ()):
            if "counter" in part:
                part["counter"] = None
        found.append({kind: content})
    return found


def in_force() -> tuple[list[Any] | None, str]:
    """Return the rules that the kernel applies, None without the table, and nft's listing."""
    try:
        listing = run(*LIST)
    except FirewallError as error:
        if "No such file" in str(error):
            return None, ""
        raise
    return rules(listing), listing


@functools.lru_cache(maxsize=1)
def _expected(changed: tuple[int, ...]) -> list[Any]:
    del changed
    # nft prints rules in another form than it reads them: a network namespace of its own, which
    # ends with the command, loads and lists them.
    load = f'nft --file "$0" && {" ".join(LIST)}'
    return rules(run("unshare", "--net", "sh", "-c", load, str(FILES[1])))


def expected() -> list[Any]:
    """Return the rules in the files, in the form of `rules`; nothing is put in force."""
    return _expected(tuple(file.stat().st_mtime_ns for file in FILES))


def apply() -> str:
    """Put the rules of the files in force; return what was done, or nothing.

    Connections that are open stay open: the rules only stop new ones.
    """
    done = []
    found, listing = in_force()
    if found != expected():
        run("nft", "--file", str(FILES[1]))
        done.append(f"the rules were {'missing' if found is None else 'changed'}: loaded them")
        _, listing = in_force()
    bridges = {name for _, name in socket.if_nameindex() if BRIDGE.fullmatch(name)}
    if bridges != set(_elements(listing, "bridges")):
        commands = [f"flush set {' '.join(TABLE)} bridges"]
        listed = ", ".join(f'"{name}"' for name in sorted(bridges))
        commands += [f"add element {' '.join(TABLE)} bridges {{ {listed} }}"] if bridges else []
        run("nft", "--file", "-", given="\n".join(commands))
        done.append(f"Docker's bridges are {listed or 'none'}")
    return "; ".join(done)


def _elements(listing: str, name: str) -> list[Any]:
    for entry in json.loads(listing)["nftables"]:
        if entry.get("set", {}).get("name") == name:
            return list(entry["set"].get("elem", []))
    return []


def _events(protocol: int, group: int) -> socket.socket:
    """Subscribe to the kernel's messages about changes."""
    messages = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    messages.bind((0, 0))
    messages.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    messages.setblocking(False)
    return messages


def _drain(messages: socket.socket) -> None:
    """Read what there is: only that there is something matters."""
    while True:
        try:
            messages.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            continue  # Messages were lost (ENOBUFS).


def watch() -> None:
    """Keep the rules in force."""
    sources = [_events(_NETLINK_NETFILTER, _NFTABLES), _events(_NETLINK_ROUTE, _LINKS)]
    while True:
        try:
            if done := apply():
                print(done, flush=True)
        except (FirewallError, OSError, ValueError) as error:
            print(f"cannot put the rules in force: {error}", file=sys.stderr, flush=True)
        if select.select(sources, [], [], INTERVAL_SECONDS)[0]:
            time.sleep(SETTLE_SECONDS)
        for source in sources:
            _drain(source)


def survey() -> dict[str, Any]:
    """Return what listens on this host, and the settings of other firewalls that are active."""
    sockets = run("ss", "--no-header", "--listening", "--numeric", "--tcp", "--udp", "--processes")
    others: dict[str, str] = {}
    ssh: list[str] = []
    with contextlib.suppress(FirewallError):
        if "Status: active" in (status := run("ufw", "status")):
            others["ufw"] = status
    with contextlib.suppress(FirewallError):
        others["firewalld"] = run("firewall-cmd", "--zone=trusted", "--list-sources")
    with contextlib.suppress(FirewallError):
        ssh = re.findall(r"(?m)^port (\d+)", run("/usr/sbin/sshd", "-T"))
    return {
        "ssh": ssh,
        "installed": all(file.exists() for file in FILES),
        "sockets": sockets.splitlines(),
        "firewalls": others,
    }


def state(ssh: int, port: int) -> dict[str, Any]:
    """Return whether the rules are in force, whom they admit, and what a stranger reaches.

    Args:
        ssh: A port of this host that is open to everyone.
        port: A port of this host that is open to members only.
    """
    if not all(file.exists() for file in FILES):
        return {"rules": "not installed", "members": [], "stranger": {}}
    found, listing = in_force()
    if found is None:
        return {"rules": "missing", "members": [], "stranger": stranger(ssh, port)}
    return {
        "rules": "in force" if found == expected() else "changed",
        "members": _elements(listing, "members4") + _elements(listing, "members6"),
        "stranger": stranger(ssh, port),
    }


def stranger(ssh: int, port: int) -> dict[str, dict[str, str]]:
    """Connect to this host from an address that belongs to no member.

    The stranger is a network namespace that ends with this function, and its link with it.

    Returns:
        IP version -> ssh and port -> open, refused or dropped.
    """
    found: dict[str, dict[str, str]] = {}
    with _namespace() as holder, contextlib.ExitStack() as listeners:
        link = f"stranger{holder}"[:15]
        inside = ("nsenter", f"--target={holder}", "--net")
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "host", "netns", str(holder))
        run("ip", "link", "set", link, "up")
        run(*inside, "ip", "link", "set", "host", "up")
        for version, (family, ours, theirs, prefix) in STRANGERS.items():
            nodad = ["nodad"] if family == socket.AF_INET6 else []
            try:
                run("ip", "address", "add", f"{ours}/{prefix}", "dev", link, *nodad)
                run(*inside, "ip", "address", "add", f"{theirs}/{prefix}", "dev", "host", *nodad)
                listeners.enter_context(socket.create_server((ours, port), family=family))
            except FirewallError:
                continue  # This host has no IPv6.
            except OSError:
                pass  # A trial listens there: just as good.
            found[version] = {
                name: _connect(holder, family, (ours, number))
                for name, number in (("ssh", ssh), ("port", port))
            }
    return found


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """Yield the process that holds a new network namespace; it ends with this one at the latest."""
    own = Path("/proc/self/ns/net").readlink()
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) as holder:
        deadline = time.monotonic() + 5
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            if holder.poll() is not None or time.monotonic() > deadline:
                raise FirewallError("unshare cannot make a network namespace")
            time.sleep(0.01)
        yield holder.pid


def _connect(holder: int, family: int, address: tuple[str, int]) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces = Path("/proc/self/ns/net"), Path(f"/proc/{holder}/ns/net")
    with namespaces[0].open() as own, namespaces[1].open() as other:
        # A socket stays in the namespace in which it was made.
        if libc.setns(other.fileno(), _CLONE_NEWNET):
            raise FirewallError(f"setns: {os.strerror(ctypes.get_errno())}")
        client = socket.socket(family, socket.SOCK_STREAM)
        if libc.setns(own.fileno(), _CLONE_NEWNET):
            raise FirewallError(f"setns: {os.strerror(ctypes.get_errno())}")
    with client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(address)
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "dropped"
    return "open"


def main(command: str, *arguments: str) -> None:
    """Run one command."""
    if command == "watch":
        watch()
    elif command == "apply":
        print(apply())
    elif command == "survey":
        print(json.dumps(survey()))
    elif command == "state":
        print(json.dumps(state(*map(int, arguments))))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except FirewallError as error:
        sys.exit(str(error))
