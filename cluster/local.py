"""The cluster on this machine: runs docker-compose.yaml with generated passwords."""

import os
import secrets
import shutil
import socket
import string
import time
from dataclasses import dataclass, replace
from pathlib import Path

import requests
from rich.console import Console

from cluster import docker
from cluster.certificates import AUTHORITY, create_certificates, delete_certificates
from cluster.connection import (
    ROOT,
    MasterConnection,
    connection_file,
    delete_connection,
    load_connection,
    save_connection,
    write_secret,
)
from cluster.errors import ClusterError
from cluster.gpus import PROCESSORS, WAY_OUT, AgentGpus, GpuChoice, agent_gpus
from cluster.template import local_template, set_template
from cluster.users import ADMINISTRATOR, USER, ensure_user
from cocodata import DatasetError
from cocodata.format.manifest import read_manifest
from tools.secrets_folder import SECRETS
from tools.versions import read_variables, read_versions, task_image

_SECRETS = ("DATABASE_PASSWORD", "ADMIN_PASSWORD")
_HEADER = (
    "# Written by make local-up: versions.env, this machine's settings, and passwords, which are\n"
    "# generated once and then kept. Do not commit this file.\n"
)


def make_password(length: int = 24) -> str:
    """Generate a password that meets Determined's rules: upper case, lower case and a digit."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits)
    while True:
        password = "".join(secrets.choice("".join(kinds)) for _ in range(length))
        if all(set(kind) & set(password) for kind in kinds):
            return password


@dataclass(frozen=True)
class LocalCluster:
    """A cluster of containers on this machine.

    Attributes:
        name: The value of CLUSTER= for this cluster.
        project: Compose's project name, the prefix of its containers, networks and volumes.
        env_file: Variables for the compose file, including the passwords.
        state: Folder for checkpoints and the cluster's id.
    """

    name: str = "local"
    project: str = "efficientdet"
    env_file: Path = ROOT / ".env"
    state: Path = ROOT / "data" / "local-cluster"

    @property
    def certificates(self) -> Path:
        """Folder for the certificates of the master and the agents."""
        return SECRETS / self.name

    def up(
        self,
        console: Console,
        *,
        data: Path,
        agents: int = 1,
        slots: int = 4,
        port: int = 8080,
        gpus: GpuChoice = "auto",
    ) -> MasterConnection:
        """Start the cluster, or apply these settings to the running one.

        Raises:
            ClusterError: Docker or an image is missing, the port is taken, GPUs cannot be used, or
                a service does not start.
        """
        started = time.monotonic()
        docker.require_engine()
        self._require_database_password()
        image = task_image()
        if not docker.has_image(image):
            raise ClusterError(f"the task image {image} has not been built: make image")
        self._require_port(port)
        given = agent_gpus(gpus, agents=agents, image=image, console=console)
        (self.state / "checkpoints").mkdir(parents=True, exist_ok=True)
        existed = self.env_file.is_file()
        variables = self._write_env(image, port=port, slots=slots, gpus=given)
        if create_certificates(self.certificates) and existed:
            # A running cluster has other certificates or, from an earlier version, none, and trials
            # on the host's network: its trials resume in the new one.
            self._stop()
        self.compose(
            *("up", "--detach", "--wait", "--wait-timeout", "180", "--scale", f"agent={agents}")
        )
        administrator = MasterConnection(
            name=self.name,
            master=f"https://127.0.0.1:{port}",
            user=ADMINISTRATOR,
            password=variables["ADMIN_PASSWORD"],
            password_file=self.env_file,
            certificate=str(self.certificates / AUTHORITY),
            template=self.name,
            data=str(data.resolve()),
            versions={str(data.resolve()): version} if (version := _data_version(data)) else {},
        )
        self._save_cluster_id()
        total_slots = wait_for_agents(administrator, agents)
        if total_slots < given.slots:
            raise ClusterError(
                f"the agent has {total_slots} slots, but was given {given.slots} GPU(s): "
                "nvidia-smi fails in its container. To see why: docker compose logs agent. "
                f"{WAY_OUT}"
            )
        set_template(administrator, local_template(image, self.state / "checkpoints"))
        password = self._user_password()
        ensure_user(administrator, password)
        connection = replace(administrator, user=USER, password=password, password_file=None)
        file = save_connection(connection)
        console.print(
            f"The cluster is ready after {time.monotonic() - started:.0f} s: {connection.master}, "
            f"{agents} agent(s), {total_slots} slots ({given.kind}); user {USER}, password in "
            f"{file.relative_to(ROOT)}",
            highlight=False,
        )
        return connection

    def down(self, console: Console) -> None:
        """Stop the cluster; keep experiments, checkpoints and passwords.

        Raises:
            ClusterError: It was never started, or a service does not stop.
        """
        docker.require_engine()
        if not self.env_file.is_file():
            raise ClusterError(f"no cluster has been started here: {self.env_file.name} is missing")
        self._stop()
        console.print("Stopped. To start it again: make local-up; to remove it: make local-destroy")

    def destroy(self, console: Console) -> None:
        """Remove the cluster with its database, checkpoints and passwords."""
        docker.require_engine()
        if self.env_file.is_file():
            self._stop("--volumes")
        if self.state.is_dir():
            _remove_tree(self.state)
        self.env_file.unlink(missing_ok=True)
        delete_connection(self.name)
        delete_certificates(self.certificates)
        console.print("Removed the containers, the database, the checkpoints and the passwords")

    def compose(self, *arguments: str) -> None:
        """Run a compose command for this cluster."""
        docker.compose(arguments, folder=str(ROOT), variables=read_variables(self.env_file))

    def _stop(self, *options: str) -> None:
        """Remove the containers, those of trials included, and the networks."""
        cluster_id = self._cluster_id()
        # What compose has labelled with the project's name, also by an earlier version's file.
        labelled = {"COMPOSE_PROJECT_NAME": self.project}
        # Trials are on a network of compose, and a network in use cannot be removed.
        docker.compose(("stop",), folder="/", variables=labelled)
        _remove_tasks(cluster_id)
        docker.compose(("down", "--remove-orphans", *options), folder="/", variables=labelled)

    def _cluster_id(self) -> str | None:
        """Return the master's id from when it last answered, or None if it never has."""
        self._save_cluster_id()
        file = self.state / "cluster_id"
        return file.read_text().strip() if file.is_file() else None

    def _save_cluster_id(self) -> None:
        # Trials' containers are labelled with it, and must be found even if the master is down.
        port = read_variables(self.env_file).get("MASTER_PORT", "8080")
        try:
            answer = requests.get(
                f"https://127.0.0.1:{port}/info",
                timeout=5,
                verify=str(self.certificates / AUTHORITY),
            )
            cluster_id = str(answer.json()["cluster_id"])
        except (OSError, ValueError, KeyError):
            return
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "cluster_id").write_text(f"{cluster_id}\n")

    def _write_env(
        self, image: str, *, port: int, slots: int, gpus: AgentGpus = PROCESSORS
    ) -> dict[str, str]:
        """Write the compose file's variables and the GPUs' part of it; keep existing passwords."""
        before = read_variables(self.env_file)
        files = ["docker-compose.yaml"]
        if gpus.gpus:
            file = self.state / "gpus.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(gpus.compose_file())
            files.append(str(file))
        variables = read_versions()
        variables |= {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": ":".join(files),
            "TASK_IMAGE": image,
            "MASTER_PORT": str(port),
            "SLOTS": str(slots),
            "STATE_DIR": str(self.state),
            "CERTIFICATES": str(self.certificates),
        }
        variables |= {name: before.get(name) or make_password() for name in _SECRETS}
        lines = "".join(f"{key}={value}\n" for key, value in variables.items())
        write_secret(self.env_file, _HEADER + lines)
        return variables

    def _user_password(self) -> str:
        """Return the password of the account that experiments are submitted with."""
        if connection_file(self.name).is_file():
            connection = load_connection(self.name)
            if connection.user == USER:
                return connection.password
        return make_password()

    def _require_port(self, port: int) -> None:
        """Check that the master's port is free or used by this cluster."""
        if docker.running_containers(f"com.docker.compose.project={self.project}"):
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ClusterError(
                    f"port {port} on this machine is in use; choose another, such as: "
                    "make local-up PORT=8090"
                ) from error

    def _require_database_password(self) -> None:
        """Check that the passwords of an existing database are still here."""
        volume = docker.run(
            "volume", "ls", "--quiet", "--filter", f"name=^{self.project}_database$"
        )
        if volume and not self.env_file.is_file():
            raise ClusterError(
                f"the database of an earlier cluster exists (volume {volume}), but its password, "
                f"which was in {self.env_file.name}, does not. Restore that file, or delete the "
                f"database: docker volume rm {volume}"
            )


def _data_version(data: Path) -> str | None:
    try:
        manifest = read_manifest(data)
    except DatasetError as error:
        raise ClusterError(str(error)) from error
    return manifest.version if manifest else None


def wait_for_agents(connection: MasterConnection, agents: int, *, seconds: float = 60.0) -> int:
    """Wait until this many agents are connected to the master; return their number of slots.

    Raises:
        ClusterError: Not all of them connected in time.
    """
    from determined.common.api import bindings

    session = connection.session()
    deadline = time.monotonic() + seconds
    while True:
        connected = [agent for agent in bindings.get_GetAgents(session).agents if agent.enabled]
        if len(connected) >= agents:
            return sum(len(agent.slots or {}) for agent in connected)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"only {len(connected)} of {agents} agents connected to the master within "
                f"{seconds:.0f} s. To see why: docker compose logs agent"
            )
        time.sleep(0.5)


def _remove_tasks(cluster_id: str | None) -> None:
    """Remove the containers of a cluster's trials, which keep running without their agent.

    When the cluster is started again, those trials resume from their checkpoints.
    """
    if cluster_id is None:
        return
    label = f"label=ai.determined.container.cluster={cluster_id}"
    containers = docker.run("ps", "--all", "--quiet", "--filter", label).split()
    if containers:
        docker.run("rm", "--force", *containers)


def _remove_tree(folder: Path) -> None:
    """Remove a folder with files that trials wrote, possibly as root."""
    if os.access(folder, os.W_OK) and os.getuid() == 0:
        shutil.rmtree(folder)
        return
    docker.run(
        *("run", "--rm", "--volume", f"{folder}:/state", task_image()),
        *("find", "/state", "-mindepth", "1", "-delete"),
    )
    folder.rmdir()
