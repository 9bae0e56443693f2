"""Runs a playbook over the hosts of an inventory.

The playbook's output goes to stderr, so that stdout contains only what the command prints.
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
# Imported by scripts, also without make's PYTHONPATH.
sys.path.append(str(ROOT))

from tools.secrets_folder import protect_secrets  # noqa: E402

PLAYBOOKS = ROOT / "ansible"
# Ansible's programs next to this interpreter, whatever is on the PATH.
BIN = Path(sys.executable).parent

progress = Console(stderr=True, highlight=False)


class CommandError(Exception):
    """The request cannot be carried out; the message says what to do."""


# ssh's socket in that folder has a name of 10 characters, which ssh makes 17 longer while it is
# created; Linux allows 107 for the path of a socket.
SOCKET_FOLDER_LENGTH = 107 - len("/") - 10 - 17


def environment() -> dict[str, str]:
    """The variables that Ansible's programs need."""
    return {
        **_socket_folder(Path.home() / ".ansible/cp"),
        **os.environ,
        "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
    }


def _socket_folder(default: Path) -> dict[str, str]:
    """The variable that names the folder of ssh's sockets, if Ansible's has too long a path.

    Raises:
        CommandError: Another user has the folder that takes its place.
    """
    if len(str(default)) <= SOCKET_FOLDER_LENGTH:
        return {}
    folder = Path(f"/tmp/ansible-{os.getuid()}")  # noqa: S108
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or not stat.S_ISDIR(found.st_mode):
        raise CommandError(
            f"ssh needs a folder with a short path for its sockets, and {folder} is another "
            "user's or open to others: set ANSIBLE_SSH_CONTROL_PATH_DIR to a folder of yours"
        )
    return {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder)}


def require_inventory(inventory: Path) -> None:
    """Raise an error that says how to make the inventory, if there is none."""
    if inventory.exists():
        return
    example = (PLAYBOOKS / "inventories/example.yml").relative_to(ROOT)
    raise CommandError(
        f"there is no inventory {inventory}. Copy {example} to hosts.yml and enter your hosts, or "
        "give another one: INVENTORY=ansible/inventories/single.yml is this machine alone"
    )


def require_host(inventory: Path, host: str) -> None:
    """Raise an error that lists the agents, if the host is not one of them."""
    listing = [str(BIN / "ansible-inventory"), "--inventory", str(inventory), "--list"]
    done = subprocess.run(listing, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{inventory} is not an inventory:\n{done.stderr.strip()}")
    known = json.loads(done.stdout).get("agents", {}).get("hosts", [])
    if host not in known:
        given = f"{host!r} is not an agent in {inventory}" if host else "HOST= is missing"
        raise CommandError(f"{given}; its agents are: {', '.join(known)}")


def run(
    playbook: str,
    inventory: Path,
    *,
    limit: str = "",
    variables: dict[str, Any] | None = None,
    extra: list[str] | None = None,
) -> int:
    """Run a playbook with its output on stderr; return its exit status."""
    require_inventory(inventory)
    try:
        protect_secrets()
    except PermissionError as error:
        raise CommandError(
            f"{error.filename} belongs to another user: make it yours with chown"
        ) from error
    command = [str(BIN / "ansible-playbook"), "--inventory", str(inventory)]
    # Always includes the master: every host needs its API.
    command += ["--limit", f"{limit},master"] if limit else []
    for name, value in (variables or {}).items():
        command += ["--extra-vars", json.dumps({name: value})]
    command += [*(extra or []), str(PLAYBOOKS / f"{playbook}.yml")]
    started = time.monotonic()
    status = subprocess.run(command, env=environment(), stdout=sys.stderr, check=False).returncode
    seconds = time.monotonic() - started
    outcome = "done" if status == 0 else "failed: the first error above says why"
    progress.print(f"{playbook}.yml: {outcome} ({seconds:.0f} s)", style="bold")
    return status


def run_report(playbook: str, inventory: Path, limit: str, extra: list[str] | None) -> Any:
    """Run a playbook that writes a report; return the report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        variables = {"report_file": str(file)}
        run(playbook, inventory, limit=limit, variables=variables, extra=extra)
        if not file.exists():
            raise CommandError("no report was written: the first error above says why")
        return json.loads(file.read_text())
