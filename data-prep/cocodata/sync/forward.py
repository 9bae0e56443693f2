"""A port of a host on this machine, through SSH, where there is no direct connection."""

import socket
import subprocess
import threading

from cocodata.errors import DatasetError
from cocodata.sync.hosts import Host, agent_environment

_RETRY_SECONDS = 1.0
_OPEN_SECONDS = 3.0


def forward_command(host: Host, target: str, target_port: int, port: int) -> list[str]:
    """Return the command that forwards a port of this machine until its standard input ends.

    Args:
        host: the host to log in to.
        target: the address to connect to, as that host sees it.
        target_port: the TCP port there.
        port: the TCP port of this machine, on its loopback interface.
    """
    bracketed = f"[{target}]" if ":" in target else target
    *options, address, _ = host.command
    # A connection that is shared with others could end with them.
    options += ["-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes"]
    options += ["-L", f"127.0.0.1:{port}:{bracketed}:{target_port}"]
    return [*options, address, "echo ready; exec cat >/dev/null"]


class Forward:
    """A forwarded port, opened again if its connection breaks; it ends with this process.

    Attributes:
        port: the TCP port on this machine's loopback interface.
    """

    def __init__(self, host: Host, target: str, target_port: int) -> None:
        """Open it.

        Raises:
            DatasetError: the host refuses the login or forwards no ports, is not reached by SSH,
                or nothing listens there.
        """
        self._host = host
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        if host.command[0] != "ssh":
            raise DatasetError(f"{host.name}: is not reached by SSH")
        self._command = forward_command(host, target, target_port, self.port)
        self._closed = threading.Event()
        self._process = self._start()
        threading.Thread(target=self._keep_open, daemon=True).start()
        if not self._is_open():
            self.close()
            raise DatasetError(
                f"{host.name}: its SSH server does not forward ports (AllowTcpForwarding), or "
                f"nothing listens on {target}:{target_port}"
            )

    def close(self) -> None:
        """End it."""
        self._closed.set()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _is_open(self) -> bool:
        """Return whether a connection lasts; ssh accepts and closes it if it cannot forward it."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), _OPEN_SECONDS) as connection:
                return bool(connection.recv(1))
        except TimeoutError:
            return True  # The other side waits for the first byte.
        except OSError:
            return False

    def _start(self) -> "subprocess.Popen[str]":
        with agent_environment(self._host) as environment:
            process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Ctrl-C must only reach this process; ssh ends when its input does.
                start_new_session=True,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline() != "ready\n":
                said = process.stderr.read().strip().splitlines()
                process.wait()
                raise DatasetError(f"{self._host.name}: {said[-1] if said else 'no answer'}")
            # Nobody reads what it says from now on.
            threading.Thread(target=process.stderr.read, daemon=True).start()
        return process

    def _keep_open(self) -> None:
        while True:
            self._process.wait()
            if self._closed.wait(_RETRY_SECONDS):
                return
            try:
                self._process = self._start()
            except DatasetError:
                continue  # The process has ended, so the next round tries again.


def answers(address: str, port: int, seconds: float) -> bool:
    """Return whether this machine can open a connection to a port."""
    try:
        with socket.create_connection((address, port), seconds):
            return True
    except OSError:
        return False
