"""The cluster on this machine: docker-compose.yaml with generated passwords, and its connection."""

import os
import secrets
import shutil
import socket
import string
import subprocess
import time
from pathlib import Path

from rich.console import Console

from cluster import engine
from cluster.connection import ROOT, Connection, connection_file, save_connection, write_secret
from cluster.errors import ClusterError
from cluster.template import local_template, set_template

ENV_FILE = ROOT / ".env"
_SECRETS = ("DATABASE_PASSWORD", "ADMIN_PASSWORD")
_HEADER = (
    "# Written by make local-up: versions.env, this machine's settings, and passwords, which are\n"
    "# made on first use and then kept. Not for the repository.\n"
)


def read_env(file: Path) -> dict[str, str]:
    """The variables of a file of NAME=VALUE lines; none if it is missing."""
    if not file.is_file():
        return {}
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def task_image() -> str:
    """The task image's name, which docker/image-name.sh makes from its contents."""
    run = subprocess.run(
        [str(ROOT / "docker" / "image-name.sh")], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def make_password(length: int = 24) -> str:
    """A random password that has what Determined asks for: both cases and a digit."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits)
    while True:
        password = "".join(secrets.choice("".join(kinds)) for _ in range(length))
        if all(set(kind) & set(password) for kind in kinds):
            return password


def write_env(
    file: Path, *, project: str, port: int, slots: int, state: Path, gpus: bool
) -> dict[str, str]:
    """Write the variables of the compose file; passwords that are there already are kept."""
    before = read_env(file)
    variables = read_env(ROOT / "versions.env")
    variables |= {
        "COMPOSE_PROJECT_NAME": project,
        "COMPOSE_FILE": "docker-compose.yaml" + (":docker/local/gpu.yaml" if gpus else ""),
        "TASK_IMAGE": task_image(),
        "MASTER_PORT": str(port),
        "SLOTS": str(slots),
        "STATE_DIR": str(state),
    }
    variables |= {name: before.get(name) or make_password() for name in _SECRETS}
    write_secret(file, _HEADER + "".join(f"{key}={value}\n" for key, value in variables.items()))
    return variables


def up(
    console: Console,
    *,
    data: Path,
    agents: int = 1,
    slots: int = 4,
    port: int = 8080,
    project: str = "efficientdet",
) -> Connection:
    """Start the cluster, or bring a running one to these settings; return how to reach it.

    Raises:
        ClusterError: The engine, an image or the port is missing, or a part does not start.
    """
    started = time.monotonic()
    engine.require_engine()
    _require_own_database(project)
    image = task_image()
    if not engine.has_image(image):
        raise ClusterError(f"the task image {image} is not built: make image")
    _require_port(port, project)
    state = ROOT / "data" / "local-cluster"
    (state / "checkpoints").mkdir(parents=True, exist_ok=True)
    variables = write_env(
        ENV_FILE, project=project, port=port, slots=slots, state=state, gpus=engine.has_gpus()
    )
    engine.compose(
        ["up", "--detach", "--wait", "--wait-timeout", "180", "--scale", f"agent={agents}"],
        folder=str(ROOT),
    )
    connection = Connection(
        name="local",
        master=f"http://127.0.0.1:{port}",
        user="admin",
        password=variables["ADMIN_PASSWORD"],
        template="local",
        data=str(data.resolve()),
    )
    slots_there = wait_for_agents(connection, agents)
    set_template(connection, local_template(image, state / "checkpoints"))
    save_connection(connection)
    console.print(
        f"The cluster is usable after {time.monotonic() - started:.0f} s: {connection.master}, "
        f"{agents} agent(s), {slots_there} slots; user admin, its password is in "
        f"{connection_file('local').relative_to(ROOT)}",
        highlight=False,
    )
    return connection


def wait_for_agents(connection: Connection, agents: int, *, seconds: float = 60.0) -> int:
    """Wait until the master knows this many agents; return their slots.

    Raises:
        ClusterError: They did not all come.
    """
    from determined.common.api import bindings

    session = connection.login()._session
    deadline = time.monotonic() + seconds
    while True:
        known = [agent for agent in bindings.get_GetAgents(session).agents if agent.enabled]
        if len(known) >= agents:
            return sum(len(agent.slots or {}) for agent in known)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{len(known)} of {agents} agents reached the master in {seconds:.0f} s: "
                "docker compose logs agent"
            )
        time.sleep(0.5)


def down(console: Console) -> None:
    """Stop the cluster; experiments, checkpoints and passwords stay."""
    engine.require_engine()
    if not ENV_FILE.is_file():
        raise ClusterError("no cluster was started here: there is no .env")
    engine.compose(["down", "--remove-orphans"], folder=str(ROOT))
    console.print("Stopped. make local-up starts it again; make local-destroy removes its data")


def destroy(console: Console, *, sure: bool) -> None:
    """Remove the cluster with its database, checkpoints and passwords.

    Raises:
        ClusterError: It was not said that this is wanted.
    """
    if not sure:
        raise ClusterError(
            "this removes the local cluster's database and checkpoints for good; if that is "
            "wanted: make local-destroy SURE=yes"
        )
    engine.require_engine()
    if ENV_FILE.is_file():
        engine.compose(["down", "--volumes", "--remove-orphans"], folder=str(ROOT))
    state = ROOT / "data" / "local-cluster"
    if state.is_dir():
        _remove_tree(state)
    ENV_FILE.unlink(missing_ok=True)
    connection_file("local").unlink(missing_ok=True)
    console.print("Removed: the containers, the database, the checkpoints and the passwords")


def _remove_tree(folder: Path) -> None:
    """Remove what trials wrote, which may belong to root."""
    if os.access(folder, os.W_OK) and os.getuid() == 0:
        shutil.rmtree(folder)
        return
    engine.docker(
        *("run", "--rm", "--volume", f"{folder}:/state", task_image()),
        *("find", "/state", "-mindepth", "1", "-delete"),
    )
    folder.rmdir()


def _require_port(port: int, project: str) -> None:
    """See that the master's port is free, or is this cluster's own."""
    if engine.running_containers(f"com.docker.compose.project={project}"):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(
                f"port {port} on this machine is taken; choose another: make local-up PORT=8090"
            ) from error


def _require_own_database(project: str) -> None:
    """See that the passwords of a database that exists are still here."""
    volume = engine.docker("volume", "ls", "--quiet", "--filter", f"name=^{project}_database$")
    if volume and not ENV_FILE.is_file():
        raise ClusterError(
            f"the database of an earlier cluster is there (volume {volume}), but not its password, "
            "which was in .env. Put .env back, or remove the database: "
            f"docker volume rm {volume}"
        )
