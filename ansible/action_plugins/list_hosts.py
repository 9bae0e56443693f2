"""Writes how this machine logs in to hosts, for programs that use ssh themselves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.constants
import ansible.context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import become_loader, connection_loader


def options(kind: str, plugin: str, variables: Mapping[str, Any], keys: Mapping[str, Any]) -> Any:
    """Return the options of one of Ansible's plugins for a host, and where each comes from.

    Ansible knows every way to give one: all names of a variable, its command line, environment
    variables and ansible.cfg.
    """
    loader = {"connection": connection_loader, "become": become_loader}[kind]
    # Ansible knows a plugin's options once it has read the plugin.
    loader.get(plugin, class_only=True)
    names = ansible.constants.config.get_plugin_vars(kind, plugin)
    given = {name: variables[name] for name in names if name in variables}
    return ansible.constants.config.get_plugin_options_and_origins(
        kind, plugin, keys=keys, variables=given
    )


def login(
    name: str, variables: Mapping[str, Any], passwords: Mapping[str, str], peer_port: int
) -> dict[str, Any]:
    """Return a host as `cocodata.sync.hosts.read_hosts` expects it.

    Args:
        name: The host's name in the inventory.
        variables: Its variables.
        passwords: What was typed or read: `login` and `become`; may be empty.
        peer_port: The port on which the host exchanges pieces.

    Raises:
        AnsibleActionFail: Root is reached in another way than sudo.
    """
    kind = variables.get("ansible_connection") or "ssh"
    method = (
        variables.get("ansible_become_method") or ansible.constants.DEFAULT_BECOME_METHOD or "sudo"
    )
    if method.rpartition(".")[2] != "sudo":
        raise AnsibleActionFail(
            f"{name}: ansible_become_method is {method}: use sudo, or log in as root "
            "(ansible_user: root)"
        )
    keys = {"become_pass": passwords["become"]} if passwords["become"] else {}
    become, _ = options("become", "sudo", variables, keys)
    # --user is a default that variables override.
    typed = {
        "password": passwords["login"],
        "remote_user": ansible.context.CLIARGS.get("remote_user"),
    }
    keys = {name: value for name, value in typed.items() if value}
    ssh, origins = options("connection", "ssh", variables, keys)
    # Ansible's own default is about sharing connections, and programs have one for each host.
    parts = ["ssh_args"] if origins["ssh_args"] != "default" else []
    arguments = [ssh[part] or "" for part in (*parts, "ssh_common_args", "ssh_extra_args")]
    return {
        "name": name,
        "address": variables["cluster_address"],
        "connection": kind.rpartition(".")[2],
        "ssh_address": variables.get("ansible_ssh_host") or variables.get("ansible_host") or name,
        "user": ssh["remote_user"] or "",
        "port": ssh["port"],
        "key": ssh["private_key_file"] or "",
        "arguments": " ".join(argument for argument in arguments if argument),
        "login_password": ssh["password"] or "",
        "password": become["become_pass"] or "",
        "peer_port": peer_port,
    }


class ActionModule(ActionBase):
    """The action list_hosts: hosts (names), dest (a file here), port, passwords (whether to)."""

    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the file with mode 600; nothing of it is in the result."""
        del tmp
        result: dict[str, Any] = super().run(task_vars=task_vars)
        given = self._task.args
        variables = (task_vars or {})["hostvars"]
        typed = {"login": self._play_context.password, "become": self._play_context.become_pass}
        entries = [
            login(name, variables[name], typed, int(given.get("port", 0)))
            for name in given["hosts"]
        ]
        if not given.get("passwords", True):
            for entry in entries:
                entry["login_password"] = entry["password"] = ""
        dest = Path(given["dest"])
        written, temporary = tempfile.mkstemp(dir=dest.parent)  # Its mode is 600.
        with os.fdopen(written, "w", encoding="utf-8") as file:
            json.dump(entries, file)
        Path(temporary).replace(dest)
        return {**result, "changed": False}
