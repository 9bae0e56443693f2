"""The hosts that a data set is copied to, and how to run a program on them."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson

from cocodata.errors import DatasetError

PORT = 12401
"""TCP port on which hosts exchange pieces."""


@dataclass(frozen=True)
class Host:
    """A host of the inventory.

    Attributes:
        name: its name in messages.
        address: where other hosts reach it.
        command: starts a program on it; the program's arguments are appended.
        password: for sudo, if it asks for one.
        listen: the address to listen on and to connect from; None for all.
        port: TCP port on which it exchanges pieces.
    """

    name: str
    address: str
    command: tuple[str, ...]
    password: str | None = None
    listen: str | None = None
    port: int = PORT


def host_from_inventory(
    name: str,
    address: str,
    *,
    ssh_address: str | None = None,
    user: str | None = None,
    port: int | None = None,
    key: str | None = None,
    arguments: str = "",
    python: str = "/usr/bin/python3",
    password: str | None = None,
    peer_port: int = PORT,
    connection: str = "ssh",
) -> Host:
    """Return a host from the settings in Ansible's inventory.

    Args:
        name: its name in messages.
        address: where other hosts reach it.
        ssh_address: where this machine reaches it; `address` if None.
        user: for the login; anyone but root uses sudo.
        port: of its SSH server.
        key: file of the private key.
        arguments: further arguments of ssh.
        python: path of its interpreter.
        password: for sudo.
        peer_port: TCP port on which it exchanges pieces.
        connection: `ssh`, or `local` for this machine.
    """
    if connection == "local":
        local = (python,) if os.geteuid() == 0 else ("sudo", "-n", python)
        return Host(name, address, local, None, None, peer_port)
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
    command += [
        "-o",
        "ServerAliveInterval=5",
        "-o",
        "ServerAliveCountMax=4",
        "-o",
        "LogLevel=ERROR",
    ]
    command += shlex.split(arguments)
    if port is not None:
        command += ["-p", str(port)]
    if key:
        command += ["-i", str(Path(key).expanduser())]
    if user:
        command += ["-l", user]
    # A remote shell splits the arguments, so they are quoted. It knows the address we come from.
    sudo = "" if user == "root" else "sudo -S -p '' " if password else "sudo -n "
    command += [ssh_address or address, f'exec {sudo}env COCO_SSH="$SSH_CONNECTION" {python}']
    return Host(name, address, tuple(command), password, None, peer_port)


def control_machine(address: str = "") -> Host:
    """Return the control machine as a source; it may also be one of the hosts.

    Args:
        address: the address that hosts see for it; empty to find out.
    """
    return Host("this machine", address, (sys.executable,), port=0)


def read_hosts(path: Path) -> list[Host]:
    """Read hosts from a JSON list with the arguments of `host_from_inventory` for each.

    Raises:
        DatasetError: the file is missing or is not such a list.
    """
    try:
        entries = orjson.loads(path.read_bytes())
        hosts = [
            host_from_inventory(
                **{key: value for key, value in entry.items() if value not in ("", None)}
            )
            for entry in entries
        ]
    except FileNotFoundError:
        raise DatasetError(f"{path}: does not exist") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not a list of hosts ({error})") from None
    if not hosts:
        raise DatasetError(f"{path}: lists no hosts")
    return hosts


def python_command(host: Host, program: str) -> list[str]:
    """Return the command line that runs a Python program on a host."""
    options = ["-u", "-c", program]
    if host.command and host.command[0] == "ssh":
        return [*host.command[:-1], f"{host.command[-1]} {shlex.join(options)}"]
    return [*host.command, *options]


def agent_environment() -> dict[str, str]:
    """Return this process's environment without settings of its memory allocator."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
