"""The network interface over which the ranks of a trial on several hosts communicate."""

import os
from collections.abc import MutableMapping
from pathlib import Path

FILE = Path("/etc/determined-trial-interface")
"""Where a cluster's hosts name it: the setting `trial_interface` (ansible/group_vars)."""


def use_trial_interface(
    file: Path = FILE, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Let Gloo, Horovod and NCCL use this host's interface, if the cluster names one.

    Horovod's launcher gives the ranks of all hosts the name that the interface has on its own host.
    """
    try:
        name = file.read_text().strip()
    except OSError:
        return
    if name:
        environment["GLOO_SOCKET_IFNAME"] = environment["HOROVOD_GLOO_IFACE"] = name
        # NCCL takes a name for the beginning of one, unless it follows an equals sign.
        environment["NCCL_SOCKET_IFNAME"] = f"={name}"
