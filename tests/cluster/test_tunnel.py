"""The way to a master that this machine reaches by SSH only."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import connection, tunnel
from cluster.errors import ClusterError
from cocodata.errors import DatasetError
from cocodata.sync.hosts import Host, host_from_inventory

HOST = host_from_inventory("node1", "10.0.0.1", ssh_address="203.0.113.5", user="admin")


class Forward:
    """Stands for a forwarded port; refuses hosts of the name `shut`."""

    def __init__(self, host: Host, target: str, target_port: int) -> None:
        if host.name == "shut":
            raise DatasetError("shut: Permission denied (publickey)")
        self.port = target_port + 1


@pytest.fixture(autouse=True)
def _forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tunnel, "Forward", Forward)
    monkeypatch.setattr(tunnel, "_DIRECT_SECONDS", 0.2)
    yield
    tunnel.reachable_address.cache_clear()


def test_the_direct_way_is_preferred() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        master = f"https://127.0.0.1:{server.getsockname()[1]}"
        assert tunnel.reachable_address(master, HOST) == master
        port = server.getsockname()[1]
    assert tunnel.reachable_address(f"https://127.0.0.2:{port}", HOST) == (
        f"https://127.0.0.1:{port + 1}"
    )


def test_without_a_login_by_ssh_only_the_direct_way_is_tried() -> None:
    here = host_from_inventory("node1", "10.0.0.1", connection="local")
    for login in (None, here):
        assert tunnel.reachable_address("https://127.0.0.1:1", login) == "https://127.0.0.1:1"


def test_a_refused_login_is_an_error_that_names_both_ways() -> None:
    shut = host_from_inventory("shut", "10.0.0.1")
    with pytest.raises(ClusterError, match=r"https://127\.0\.0\.1:1 neither.*shut: Permission den"):
        tunnel.reachable_address("https://127.0.0.1:1", shut)


def test_a_connection_through_a_tunnel_verifies_the_masters_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FOLDER", tmp_path)
    monkeypatch.setattr(connection, "_protect", lambda: None)
    content: dict[str, Any] = {
        **{"master": "https://127.0.0.1:1", "user": "determined", "password": "p"},
        **{"template": "main", "data": "/data/coco", "certificate": "/ca.crt"},
    }
    (tmp_path / "main.yaml").write_text(yaml.safe_dump(content))
    direct = connection.load_connection("main")
    assert (direct.address, direct.certificate_name) == ("https://127.0.0.1:1", None)
    assert "DET_MASTER_CERT_NAME" not in direct.environment()

    (tmp_path / "main.login").write_text(json.dumps([{"name": "node1", "address": "10.0.0.1"}]))
    loaded = connection.load_connection("main")
    assert loaded.environment()["DET_MASTER"] == "https://127.0.0.1:2"
    assert loaded.environment()["DET_MASTER_CERT_NAME"] == "127.0.0.1"
    # Messages name the cluster's own address.
    assert loaded.master == "https://127.0.0.1:1"
    connection.delete_connection("main")
    assert list(tmp_path.iterdir()) == []
