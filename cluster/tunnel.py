"""A way to a master that this machine can only reach by SSH, through the master's host."""

import functools
from urllib.parse import urlsplit

from cluster.errors import ClusterError
from cocodata.errors import DatasetError
from cocodata.sync.forward import Forward, answers
from cocodata.sync.hosts import Host

_DIRECT_SECONDS = 3.0


@functools.cache
def reachable_address(master: str, login: Host | None) -> str:
    """Return an address of the master that this machine reaches: its own, or that of a tunnel.

    A tunnel lasts as long as this process.

    Args:
        master: The URL of the master in the cluster.
        login: The master's host, or None to try the direct way only.

    Raises:
        ClusterError: Neither way works.
    """
    parts = urlsplit(master)
    host, port = str(parts.hostname), parts.port or 443
    if login is None or login.command[0] != "ssh" or answers(host, port, _DIRECT_SECONDS):
        return master
    try:
        tunnel = Forward(login, host, port)
    except DatasetError as error:
        raise ClusterError(
            f"this machine reaches {master} neither directly nor by SSH to {error}. Logging in to "
            f"{login.name} must work without a password, by a key"
        ) from error
    return f"{parts.scheme}://127.0.0.1:{tunnel.port}"
