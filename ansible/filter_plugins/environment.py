"""Evaluates how a host is set up: what the roles cannot work with is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = dict[str, Any]


def environment_checks(probe: Mapping[str, Any], host: str, remote_tmp: str) -> list[Check]:
    """Return what is wrong with a host's set-up, in the form of the checks of hosts.

    Args:
        probe: What host_probe returned.
        host: The host's name in the inventory.
        remote_tmp: The folder for Ansible's temporary files there.
    """
    found = []
    user = probe["docker"]["rootless"]
    if user is not None:
        found.append(
            (
                "Docker",
                f"runs rootless, as user {user}",
                "use the engine of the system: as that user `systemctl --user disable --now "
                "docker`, then `sudo systemctl enable --now docker`",
            )
        )
    if probe["selinux"]:
        found.append(
            (
                "SELinux",
                "is enforcing: it would keep trials from their data",
                "set SELINUX=permissive in /etc/selinux/config, and run `setenforce 0`",
            )
        )
    if probe["home"].startswith("nfs") and remote_tmp.startswith("~"):
        found.append(
            (
                "home",
                "is on NFS, where root may not read the files that Ansible copies there",
                "set ansible_remote_tmp to a folder of the user on a local disk, such as "
                "/var/tmp/ansible",
            )
        )
    return [
        {"host": host, "name": name, "ok": False, "message": message, "remedy": remedy}
        for name, message, remedy in found
    ]


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"environment_checks": environment_checks}
