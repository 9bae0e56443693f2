"""The cluster on this machine, without an engine: passwords, files, messages."""

import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import connection, docker
from cluster.cli import _data_settings
from cluster.connection import ROOT, MasterConnection, load_connection, save_connection
from cluster.errors import ClusterError
from cluster.local import LocalCluster, make_password
from tools.versions import read_variables, read_versions


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FOLDER", tmp_path / "clusters")


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
        "password": "secret",
        "template": "here",
        "data": "/data/coco",
    }
    return MasterConnection(**{**content, **changes})


def test_passwords_satisfy_determined_and_differ() -> None:
    made = {make_password() for _ in range(50)}
    assert len(made) == 50
    for password in made:
        assert len(password) >= 24
        assert any(c.islower() for c in password)
        assert any(c.isupper() for c in password)
        assert any(c.isdigit() for c in password)
        assert password.isalnum()  # it stands in YAML and in env files without quotes


def test_the_env_file_keeps_its_passwords_and_nobody_else_reads_it(local: LocalCluster) -> None:
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


def test_the_compose_file_gets_every_variable_and_no_other_way_in(local: LocalCluster) -> None:
    """Each variable without a default is in the env file; the only published port is loopback's."""
    text = (ROOT / "docker-compose.yaml").read_text()
    variables = local._write_env("image:1", port=8080, slots=4)
    needed = {part.split(":?")[0] for part in text.split("${")[1:] if ":?" in part.split("}")[0]}
    assert needed
    assert needed <= variables.keys()
    content = yaml.safe_load(text)
    ports = [port for each in content["services"].values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all(
        "password" not in line.lower() or "${" in line or line.strip().startswith("#")
        for line in text.splitlines()
        if ":" in line and "prevent_blank" not in line and "initial_user" not in line
    )


def test_a_taken_port_is_a_message(local: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "running_containers", lambda label: [])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} .* is taken"):
            local._require_port(port)
    local._require_port(port)


def test_a_database_without_its_password_is_a_message(
    local: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "run", lambda *arguments: "here_database")
    with pytest.raises(ClusterError, match="docker volume rm here_database"):
        local._require_own_database()
    local.env_file.write_text("DATABASE_PASSWORD=x\n")
    local._require_own_database()


def test_no_engine_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="Install Docker's engine"):
        docker.require_engine()


def test_connections_are_kept_secret_and_read_back() -> None:
    saved = connection_to(8080, versions={"/data/coco": "44c9"}, certificate="/ca.pem")
    file = save_connection(saved)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_connection("here") == saved
    assert saved.environment()["DET_MASTER_CERT_FILE"] == "/ca.pem"
    file.chmod(0o644)
    with pytest.raises(ClusterError, match="chmod 600"):
        load_connection("here")


def test_a_data_set_is_named_by_its_folder_and_version() -> None:
    """The configured one needs no mount; another lies beside it, under its own name."""
    versions = {"/data/coco": "44c9", "/data/shapes": "77aa"}
    connection = connection_to(8080, data="/data/coco", versions=versions)
    assert _data_settings(connection, None) == {"data": {"version": "44c9"}}
    (mount,) = _data_settings(connection, "shapes")["bind_mounts"]
    assert (mount["host_path"], mount["container_path"]) == ("/data/shapes", "/data/coco")
    assert _data_settings(connection, "shapes")["data"] == {"version": "77aa"}
    assert "data" not in _data_settings(connection, "unknown")
    with pytest.raises(ClusterError, match="is a path"):
        _data_settings(connection, "../shapes")


def test_an_unknown_cluster_is_a_message() -> None:
    with pytest.raises(ClusterError, match="make local-up"):
        load_connection("main")
    save_connection(connection_to(8080))
    with pytest.raises(ClusterError, match="there is: here"):
        load_connection("main")


def test_a_master_that_does_not_answer_is_a_message() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match="does not answer"):
        connection_to(port).login()
