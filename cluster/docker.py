"""Docker Engine and its compose plugin on this machine, through their command lines."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import ClusterError

# The first with inline `configs`.
_MIN_COMPOSE_VERSION = (2, 23, 1)


def run(*arguments: str, check: bool = True) -> str:
    """Run a docker command and return its stdout.

    Raises:
        ClusterError: It failed; the message ends with its stderr.
    """
    process = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and process.returncode:
        raise ClusterError(
            f"docker {' '.join(arguments[:2])} failed: {process.stderr.strip()[-2000:]}"
        )
    return process.stdout.strip()


def require_engine() -> None:
    """Check that Docker Engine is running and that compose is new enough.

    Raises:
        ClusterError: One of them is missing or too old; the message says what to install or start.
    """
    if shutil.which("docker") is None:
        raise ClusterError(
            "docker is not installed. Install Docker Engine and its compose plugin (Debian 13: "
            "apt install docker.io docker-cli docker-compose docker-buildx)"
        )
    process = subprocess.run(
        ["docker", "info", "--format", "{{.ServerVersion}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise ClusterError(
            "Docker Engine does not answer. Start it (systemctl start docker), and check that this "
            f"user may use it: {process.stderr.strip()[-500:]}"
        )
    version = run("compose", "version", "--short", check=False).lstrip("v")
    numbers = tuple(
        int(part) for part in version.split("-")[0].split("+")[0].split(".")[:3] if part
    )
    if numbers < _MIN_COMPOSE_VERSION:
        required = ".".join(str(part) for part in _MIN_COMPOSE_VERSION)
        raise ClusterError(
            f"docker compose {required} or newer is required, found {version or 'none'}: upgrade "
            "Docker's compose plugin"
        )


def has_image(name: str) -> bool:
    """Return whether Docker has an image of this name."""
    return bool(run("image", "ls", "--quiet", name))


def running_containers(label: str) -> list[dict[str, Any]]:
    """Return the running containers with a label, as `docker ps` lists them."""
    rows = run("ps", "--filter", f"label={label}", "--format", "{{json .}}")
    return [json.loads(row) for row in rows.splitlines()]


def compose(arguments: Sequence[str], *, folder: str, variables: Mapping[str, str]) -> None:
    """Run a compose command, with its output on the terminal.

    Raises:
        ClusterError: It failed; its output on the terminal says why.
    """
    process = subprocess.run(
        ["docker", "compose", *arguments], cwd=folder, env={**os.environ, **variables}, check=False
    )
    if process.returncode:
        raise ClusterError(
            f"docker compose {arguments[0]} failed; see the output above. For more: "
            "docker compose logs"
        )
