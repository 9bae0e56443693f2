"""Docker's engine and its compose plugin on this machine, asked through their command lines."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import ClusterError

# Configurations written inside a compose file.
_COMPOSE_NEEDED = (2, 23, 1)


def run(*arguments: str, check: bool = True) -> str:
    """Run a docker command; return what it printed.

    Raises:
        ClusterError: It failed; the message ends with what it said.
    """
    process = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and process.returncode:
        raise ClusterError(
            f"docker {' '.join(arguments[:2])} failed: {process.stderr.strip()[-2000:]}"
        )
    return process.stdout.strip()


def require_engine() -> None:
    """See that an engine answers and that compose is new enough.

    Raises:
        ClusterError: One of them is missing; the message says what to install or start.
    """
    if shutil.which("docker") is None:
        raise ClusterError(
            "docker is missing. Install Docker's engine and its compose plugin (Debian 13: "
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
            "Docker's engine does not answer. Start it (systemctl start docker), and see that this "
            f"user may use it: {process.stderr.strip()[-500:]}"
        )
    version = run("compose", "version", "--short", check=False).lstrip("v")
    numbers = tuple(
        int(part) for part in version.split("-")[0].split("+")[0].split(".")[:3] if part
    )
    if numbers < _COMPOSE_NEEDED:
        needed = ".".join(str(part) for part in _COMPOSE_NEEDED)
        raise ClusterError(
            f"docker compose {version or '(missing)'} is too old; {needed} or newer is needed"
        )


def has_image(name: str) -> bool:
    """Whether the engine has an image under this name."""
    return bool(run("image", "ls", "--quiet", name))


def has_gpus() -> bool:
    """Whether this machine's NVIDIA driver shows GPUs."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def running_containers(label: str) -> list[dict[str, Any]]:
    """The running containers with a label, as `docker ps` tells of them."""
    rows = run("ps", "--filter", f"label={label}", "--format", "{{json .}}")
    return [json.loads(row) for row in rows.splitlines()]


def compose(arguments: Sequence[str], *, folder: str, variables: Mapping[str, str]) -> None:
    """Run a compose command with its own progress on the terminal.

    Raises:
        ClusterError: It failed; what it said is on the terminal.
    """
    process = subprocess.run(
        ["docker", "compose", *arguments], cwd=folder, env={**os.environ, **variables}, check=False
    )
    if process.returncode:
        raise ClusterError(
            f"docker compose {arguments[0]} failed; the lines above say why. More: "
            "docker compose logs"
        )
