"""The hosts that a data set is copied to, and how to run a program on them."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
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
        login_password: for ssh, if there is no key.
        listen: the address to listen on and to connect from; None for all.
        port: TCP port on which it exchanges pieces.
    """

    name: str
    address: str
    command: tuple[str, ...]
    password: str | None = field(default=None, repr=False)
    listen: str | None = None
    port: int = PORT
    login_password: str | None = field(default=None, repr=False)


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
    login_password: str | None = None,
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
        login_password: for ssh.
        peer_port: TCP port on which it exchanges pieces.
        connection: `ssh`, or `local` for this machine.
    """
    # sudo reads a password from standard input.
    sudo = ("sudo", "-S", "-p", "") if password else ("sudo", "-n")
    if connection == "local":
        local = (python,) if os.geteuid() == 0 else (*sudo, python)
        return Host(name, address, local, password, None, peer_port)
    command = ["ssh", "-o", f"BatchMode={'no' if login_password else 'yes'}"]
    for option in (
        "ConnectTimeout=15",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=4",
        "LogLevel=ERROR",
    ):
        command += ["-o", option]
    command += shlex.split(arguments)
    if login_password:
        # A wrong password is sent once, and no question about a host's key is answered with it.
        # Of two values, ssh takes the first: the inventory's own arguments come before these.
        command += ["-o", "NumberOfPasswordPrompts=1", "-o", "StrictHostKeyChecking=yes"]
    if port is not None:
        command += ["-p", str(port)]
    if key:
        command += ["-i", str(Path(key).expanduser())]
    if user:
        command += ["-l", user]
    # A remote shell splits the arguments, so they are quoted. It knows the address we come from.
    become = "" if user == "root" else f"{shlex.join(sudo)} "
    command += [ssh_address or address, f'exec {become}env COCO_SSH="$SSH_CONNECTION" {python}']
    return Host(name, address, tuple(command), password, None, peer_port, login_password)


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


@contextlib.contextmanager
def agent_environment(host: Host) -> Iterator[dict[str, str]]:
    """Yield the environment in which the host's command is started.

    It is this process's, without settings of its memory allocator. If ssh needs a password, it gets
    it from `askpass.sh`, which reads it from this process's memory while the context lasts: neither
    arguments, environment nor a file on a disk contain it.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }
    if host.login_password is None:
        yield environment
        return
    memory = os.memfd_create("password")
    try:
        os.write(memory, host.login_password.encode())
        yield environment | {
            "SSH_ASKPASS": str(Path(__file__).with_name("askpass.sh")),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": environment.get("DISPLAY", ":none"),  # Older versions ask only if it is set.
            "COCO_PASSWORD": f"/proc/{os.getpid()}/fd/{memory}",
        }
    finally:
        os.close(memory)
