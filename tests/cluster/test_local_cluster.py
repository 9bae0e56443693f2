"""The cluster on this machine, tested without Docker: passwords, files, error messages."""

import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster import connection, docker
from cluster import local as local_module
from cluster.certificates import create_certificates
from cluster.cli import _data_settings
from cluster.connection import ROOT, MasterConnection, load_connection, save_connection
from cluster.errors import ClusterError
from cluster.gpus import AgentGpus
from cluster.local import LocalCluster, make_password
from experiments.runtime.gpus import Gpu
from tools.versions import read_variables, read_versions


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FOLDER", tmp_path / "secrets" / "clusters")
    monkeypatch.setattr(local_module, "SECRETS", tmp_path / "secrets")


@pytest.fixture
def local(tmp_path: Path) -> LocalCluster:
    return LocalCluster(
        name="here", project="here", env_file=tmp_path / "env", state=tmp_path / "state"
    )


def connection_to(port: int, **changes: Any) -> MasterConnection:
    content = {
        "name": "here",
        "master": f"http://127.0.0.1:{port}",
        "user": "admin",
        "password": "secret",  # pragma: allowlist secret
        "template": "here",
        "data": "/data/coco",
    }
    return MasterConnection(**{**content, **changes})


def test_passwords_meet_determineds_rules_and_differ() -> None:
    passwords = {make_password() for _ in range(50)}
    assert len(passwords) == 50
    for password in passwords:
        assert len(password) >= 24
        assert any(c.islower() for c in password)
        assert any(c.isupper() for c in password)
        assert any(c.isdigit() for c in password)
        assert password.isalnum()  # used without quotes in YAML and env files


def test_the_env_file_keeps_passwords_and_is_private(local: LocalCluster) -> None:
    first = local._write_env("image:1", port=8080, slots=4)
    again = local._write_env("image:2", port=8081, slots=2)
    assert stat.S_IMODE(local.env_file.stat().st_mode) == 0o600
    assert read_variables(local.env_file) == again
    assert again["TASK_IMAGE"] == "image:2"
    assert again["MASTER_PORT"] == "8081"
    for name in ("DATABASE_PASSWORD", "ADMIN_PASSWORD"):
        assert first[name] == again[name]
    assert first["DATABASE_PASSWORD"] != first["ADMIN_PASSWORD"]
    for name, value in read_versions().items():
        assert name == "TASK_IMAGE" or again[name] == value


def test_the_compose_file_has_all_variables_and_no_open_port(local: LocalCluster) -> None:
    """The env file sets each variable without a default; only loopback ports are published."""
    text = (ROOT / "docker-compose.yaml").read_text()
    variables = local._write_env("image:1", port=8080, slots=4)
    needed = {part.split(":?")[0] for part in text.split("${")[1:] if ":?" in part.split("}")[0]}
    assert needed
    assert needed <= variables.keys()
    content = yaml.safe_load(text)
    ports = [port for each in content["services"].values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    # None is on the host's network, and agents reach Docker only through `engine`.
    assert "host" not in {each.get("network_mode") for each in content["services"].values()}
    assert "network_mode: host" not in content["configs"]["master"]["content"]
    with_docker = {
        name
        for name, each in content["services"].items()
        if any("docker.sock" in volume for volume in each.get("volumes", []))
    }
    assert with_docker == {"engine"}
    assert all(
        "password" not in line.lower() or "${" in line or line.strip().startswith("#")
        for line in text.splitlines()
        if ":" in line and "prevent_blank" not in line and "initial_user" not in line
        # Names of the secret, not its value.
        if "database_password" not in line and line.strip() != "environment: DATABASE_PASSWORD"
    )
    # What `docker inspect` shows.
    assert all(
        "PASSWORD" not in name or name.endswith("_FILE")
        for each in content["services"].values()
        for name in each.get("environment", {})
    )


def test_a_port_in_use_is_reported(local: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "running_containers", lambda label: [])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} .* is in use"):
            local._require_port(port)
    local._require_port(port)


@pytest.mark.parametrize(
    ("existed", "certificates", "expected"),
    [
        (False, False, ["up"]),
        (True, True, ["up"]),
        # One of an earlier version, whose trials are on the host's network.
        (True, False, ["stop", "down", "up"]),
    ],
)
def test_a_cluster_without_these_certificates_is_stopped_first(
    existed: bool,
    certificates: bool,
    expected: list[str],
    local: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def compose(arguments: Any, **_: Any) -> None:
        calls.append(arguments[0])
        if arguments[0] == "up":
            raise ClusterError("no further")

    monkeypatch.setattr(docker, "compose", compose)
    monkeypatch.setattr(docker, "run", lambda *arguments: "")
    for name in ("require_engine", "has_image"):
        monkeypatch.setattr(docker, name, lambda *_: True)
    if existed:
        local._write_env("image:1", port=1, slots=4)
    if certificates:
        create_certificates(local.certificates)
    with pytest.raises(ClusterError, match="no further"):
        local.up(Console(quiet=True), data=tmp_path, port=1, gpus="none")
    assert calls == expected
    assert not create_certificates(local.certificates)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What compose was called for, on a machine that lacks nothing."""
    calls: list[str] = []
    monkeypatch.setattr(docker, "compose", lambda arguments, **_: calls.append(arguments[0]))
    monkeypatch.setattr(docker, "run", lambda *arguments: "")
    for name in ("require_engine", "has_image"):
        monkeypatch.setattr(docker, name, lambda *_: True)
    return calls


def test_gpus_are_checked_before_anything_is_started(
    local: LocalCluster, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(choice: str, **_: Any) -> AgentGpus:
        raise ClusterError(f"no GPUs for {choice}")

    monkeypatch.setattr(local_module, "agent_gpus", refuse)
    with pytest.raises(ClusterError, match="no GPUs for required"):
        local.up(Console(quiet=True), data=tmp_path, port=1, gpus="required")
    assert calls == []
    assert not local.env_file.exists()


def test_an_agent_that_makes_no_slots_of_its_gpus_is_reported(
    local: LocalCluster, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a failing nvidia-smi is a line of the agent's log, and no slots."""
    given = AgentGpus((Gpu(0, "NVIDIA L4", "GPU-0a"), Gpu(1, "NVIDIA L4", "GPU-1a")))
    monkeypatch.setattr(local_module, "agent_gpus", lambda *_, **__: given)
    monkeypatch.setattr(local_module, "wait_for_agents", lambda *_: 1)
    with pytest.raises(ClusterError, match=r"1 slots, but was given 2 GPU\(s\).*GPUS=none"):
        local.up(Console(quiet=True), data=tmp_path, port=1)
    assert calls == ["up"]


def test_a_database_without_its_password_is_reported(
    local: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "run", lambda *arguments: "here_database")
    with pytest.raises(ClusterError, match="docker volume rm here_database"):
        local._require_database_password()
    local.env_file.write_text("DATABASE_PASSWORD=x\n")
    local._require_database_password()


def test_missing_docker_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="Install Docker Engine"):
        docker.require_engine()


def test_connections_are_private_and_round_trip() -> None:
    saved = connection_to(8080, versions={"/data/coco": "44c9"}, certificate="/ca.pem")
    file = save_connection(saved)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_connection("here") == saved
    assert saved.environment()["DET_MASTER_CERT_FILE"] == "/ca.pem"
    # Whoever opened them, they are closed again.
    file.chmod(0o644)
    file.parent.chmod(0o755)
    assert load_connection("here") == saved
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)]
    assert modes == [0o600, 0o700]


def test_the_users_password_is_kept_unless_it_was_the_administrators(local: LocalCluster) -> None:
    first = local._user_password()
    save_connection(connection_to(8080, user="determined", password=first))
    assert local._user_password() == first
    save_connection(connection_to(8080, user="admin", password="the administrator's"))
    assert local._user_password() not in (first, "the administrator's")


def test_data_settings_mount_the_data_set_and_pin_its_version() -> None:
    """The default data set needs no mount; others are its sibling folders."""
    versions = {"/data/coco": "44c9", "/data/shapes": "77aa"}
    connection = connection_to(8080, data="/data/coco", versions=versions)
    assert _data_settings(connection, None) == {"data": {"version": "44c9"}}
    (mount,) = _data_settings(connection, "shapes")["bind_mounts"]
    assert (mount["host_path"], mount["container_path"]) == ("/data/shapes", "/data/coco")
    assert _data_settings(connection, "shapes")["data"] == {"version": "77aa"}
    assert "data" not in _data_settings(connection, "unknown")
    with pytest.raises(ClusterError, match="is a path"):
        _data_settings(connection, "../shapes")


def test_an_unknown_cluster_is_reported() -> None:
    with pytest.raises(ClusterError, match="make local-up"):
        load_connection("main")
    save_connection(connection_to(8080))
    with pytest.raises(ClusterError, match="known: here;"):
        load_connection("main")


def test_a_master_that_does_not_answer_is_reported() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match="does not answer"):
        connection_to(port).login()
