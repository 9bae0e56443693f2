"""How this machine logs in to hosts: every way in which Ansible can be told reaches coco-sync."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import playbooks
from playbooks import BIN, PLAYBOOKS, CommandError

SECRET = "se'cret $word"  # pragma: allowlist secret


def _listed(
    folder: Path,
    variables: dict[str, Any],
    *arguments: str,
    **environment: str,
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """Return what list_hosts writes about a host with these variables, and Ansible's run."""
    # The plugin and the role, without the settings next to the playbooks.
    playbook, inventory, out = (folder / name for name in ("play.yml", "inventory.yml", "out.json"))
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "include_role": {
                    "name": str(PLAYBOOKS / "roles/swarm"),
                    "tasks_from": "list",
                    "apply": {
                        "delegate_to": "localhost",
                        "connection": "local",
                        "become": False,
                        "run_once": True,
                        "vars": {"ansible_connection": "local"},
                    },
                },
                "vars": {"swarm_file": str(out), "swarm_hosts": ["node1"], "swarm_port": 12401},
            }
        ],
    }
    playbook.write_text(yaml.safe_dump([play]))
    hosts = {"node1": {"cluster_address": "10.0.0.1", **variables}}
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    command = [BIN / "ansible-playbook", "-vvv", "-i", inventory, playbook, *arguments]
    outcome = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **playbooks.environment(), **environment, "NO_COLOR": "1"},
        cwd=PLAYBOOKS,
        capture_output=True,
        text=True,
        check=False,
    )
    return (json.loads(out.read_text())[0] if out.exists() else {}), outcome


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("ansible_become_password", "password"),
        ("ansible_become_pass", "password"),
        ("ansible_sudo_pass", "password"),
        ("ansible_password", "login_password"),
        ("ansible_ssh_pass", "login_password"),
    ],
)
def test_a_password_in_the_inventory(tmp_path: Path, spelling: str, key: str) -> None:
    host, outcome = _listed(tmp_path, {spelling: SECRET})
    assert host[key] == SECRET, outcome.stdout
    assert SECRET not in outcome.stdout + outcome.stderr
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("option", "key"),
    [("--become-password-file", "password"), ("--connection-password-file", "login_password")],
)
def test_a_password_that_the_command_line_asks_for(tmp_path: Path, option: str, key: str) -> None:
    """--ask-become-pass and --ask-pass arrive in the same way, from the terminal."""
    (tmp_path / "password").write_text(SECRET + "\n")
    host, outcome = _listed(tmp_path, {}, option, str(tmp_path / "password"))
    assert host[key] == SECRET, outcome.stdout
    assert SECRET not in outcome.stdout + outcome.stderr


def test_user_key_port_and_arguments(tmp_path: Path) -> None:
    host, _ = _listed(
        tmp_path,
        {
            "ansible_host": "203.0.113.5",
            "ansible_port": 2222,
            "ansible_ssh_common_args": "-J me@bastion",
            "ansible_ssh_extra_args": "-o 'Ciphers a'",
        },
        *("--user", "someone", "--private-key", "/keys/id"),
    )
    assert host == {
        "name": "node1",
        "address": "10.0.0.1",
        "connection": "ssh",
        "ssh_address": "203.0.113.5",
        "user": "someone",
        "port": 2222,
        "key": "/keys/id",
        "arguments": "-J me@bastion -o 'Ciphers a'",
        "login_password": "",
        "password": "",
        "peer_port": 12401,
    }
    by_environment, _ = _listed(tmp_path, {}, ANSIBLE_REMOTE_USER="other", ANSIBLE_SSH_ARGS="-4")
    assert (by_environment["user"], by_environment["arguments"]) == ("other", "-4")


def test_another_way_to_become_root_is_refused(tmp_path: Path) -> None:
    host, outcome = _listed(tmp_path, {"ansible_become_method": "su"})
    assert host == {}
    assert outcome.returncode != 0


def test_the_sockets_of_ssh_fit_below_any_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANSIBLE_SSH_CONTROL_PATH_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert "ANSIBLE_SSH_CONTROL_PATH_DIR" not in playbooks.environment()
    monkeypatch.setenv("HOME", "/home/" + "long/" * 20)
    folder = Path(playbooks.environment()["ANSIBLE_SSH_CONTROL_PATH_DIR"])
    assert len(str(folder)) <= playbooks.SOCKET_FOLDER_LENGTH
    assert folder.stat().st_mode & 0o777 == 0o700
    # The user's own choice stays.
    monkeypatch.setenv("ANSIBLE_SSH_CONTROL_PATH_DIR", "/mine")
    assert playbooks.environment()["ANSIBLE_SSH_CONTROL_PATH_DIR"] == "/mine"


def test_a_socket_folder_that_others_can_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    monkeypatch.setattr(playbooks, "Path", lambda _: shared)
    with pytest.raises(CommandError, match="ANSIBLE_SSH_CONTROL_PATH_DIR"):
        playbooks._socket_folder(Path("/" + "x" * 100))
