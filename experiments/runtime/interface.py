"""The network interface over which the ranks of a trial on several hosts communicate.

The same for all launchers: torch.distributed and Horovod, with NCCL and Gloo.
"""

import os
import socket
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import determined as det
import psutil

FILE = Path("/etc/determined-trial-interface")
"""Where a cluster's hosts name it: the setting `trial_interface` (ansible/group_vars)."""
_DISCARD = 9  # a port; connecting a UDP socket sends nothing


def other_hosts(info: det.ClusterInfo) -> list[str]:
    """Return the addresses of a trial's other containers."""
    addresses: list[str] = list(info.container_addrs)
    own = addresses.pop(info.container_rank)
    return [address for address in addresses if address != own]


def use_trial_interface(
    peers: Sequence[str] = (),
    file: Path = FILE,
    environment: MutableMapping[str, str] = os.environ,
) -> None:
    """Let Gloo, Horovod and NCCL use this host's interface of trials.

    It is the one that the cluster names. Horovod's launcher gives the ranks of all hosts the name
    that it has on its own host, which is overridden. If the cluster names none, it is the one with
    the route to the other ranks, unless the launcher has chosen: NCCL by itself would take the
    first of all but docker*, lo and virbr*, such as br-*, cni0 or tailscale0 (NCCL's
    src/misc/socket.cc), and Gloo that of the host's name, which may be a loopback address.

    Args:
        peers: Addresses of the other hosts' ranks; empty on one host.
        file: The file with the interface's name.
        environment: The environment to set variables in.
    """
    try:
        name = file.read_text().strip()
    except OSError:
        name = ""
    if name:
        environment["GLOO_SOCKET_IFNAME"] = environment["HOROVOD_GLOO_IFACE"] = name
        # NCCL takes a name for the beginning of one, unless it follows an equals sign.
        environment["NCCL_SOCKET_IFNAME"] = f"={name}"
    elif (route := interface_to(peers)) is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", route)
        environment.setdefault("NCCL_SOCKET_IFNAME", f"={route}")


def interface_to(peers: Sequence[str]) -> str | None:
    """Return the interface with the route to one of these addresses; None for loopback or none."""
    for peer in peers:
        family = socket.AF_INET6 if ":" in peer else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((peer, _DISCARD))
            except OSError:
                continue
            own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if name != "lo" and any(each.address.partition("%")[0] == own for each in addresses):
                return name
    return None
