"""Preflight reports every problem: each test changes one thing in the probe of a valid host."""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

GIB = 1024**3
VALID_PROBE: dict[str, Any] = {
    "system": {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12", "systemd": True},
    "machine": "x86_64",
    "memory": 64 * GIB,
    "clock_offset": 0.4,
    "disks": {
        "/var/lib/docker": {"exists": True, "at": "/var/lib/docker", "device": 1, "free": 99 * GIB},
        "/data/coco": {"exists": False, "at": "/", "device": 3, "free": 0},
        "/var/lib/coco": {"exists": False, "at": "/var/lib", "device": 2, "free": 99 * GIB},
    },
    "ports": [22],
    "docker": {"kind": None, "version": None},
    "unreachable": [],
    "provisioned": False,
}
SETTINGS = {
    "image_disk_gb": 30,
    "data_disk_gb": 60,
    "docker_data": "/var/lib/docker",
    "data_path": "/data/coco",
    "coco_store": "/var/lib/coco",
    "memory_gb": 8,
    "clock_offset_seconds": 10,
    "ports": {"master_port": 8443},
    "may_become": True,
}


def _failed(
    checks: ModuleType, change: Callable[[dict[str, Any]], object] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    probe = copy.deepcopy(VALID_PROBE)
    if change:
        change(probe)
    return list(checks.failed(checks.host_checks(probe, "node1", {**SETTINGS, **settings})))


def test_a_valid_host_passes(checks: ModuleType) -> None:
    assert _failed(checks) == []


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(probe: dict[str, Any]) -> None:
        for key in path[:-1]:
            probe = probe[key]
        probe[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        (_set("system", "version", to="11"), "operating system", "Ubuntu 24.04"),
        (_set("system", "id", to="fedora"), "operating system", "Debian 12"),
        (_set("system", "systemd", to=False), "systemd", "boot the host"),
        (_set("machine", to="aarch64"), "architecture", "x86-64"),
        (_set("memory", to=4 * GIB), "memory", "memory_gb"),
        (_set("clock_offset", to=-11.0), "clock", "set-ntp true"),
        (_set("clock_offset", to=21.0), "clock", "set-ntp true"),
        (_set("disks", "/var/lib/docker", "free", to=29 * GIB), "disk for images", "image_disk_gb"),
        (_set("disks", "/var/lib/coco", "free", to=59 * GIB), "disk for data", "data_disk_gb"),
        (_set("ports", to=[22, 8443]), "port 8443", "ss -ltnp"),
        (
            _set("docker", to={"kind": "snap", "version": "27.1"}),
            "Docker",
            "snap remove docker",
        ),
        (
            _set("docker", to={"kind": "podman", "version": "4.3"}),
            "Docker",
            "podman-docker",
        ),
        (
            _set("docker", to={"kind": "docker", "version": "19.03.8"}),
            "Docker",
            "20.10 or newer",
        ),
        (
            _set(
                "unreachable",
                to=[
                    {
                        "name": "node2",
                        "address": "node2",
                        "port": 22,
                        "error": "Name or service not known",
                        "resolved": False,
                    }
                ],
            ),
            "network",
            "make node2 resolve on node1",
        ),
        (
            _set(
                "unreachable",
                to=[
                    {
                        "name": "node2",
                        "address": "10.0.0.2",
                        "port": 22,
                        "error": "timed out",
                        "resolved": True,
                    }
                ],
            ),
            "network",
            "allow connections from node1 to 10.0.0.2:22",
        ),
    ],
)
def test_each_problem_is_reported_with_its_remedy(
    checks: ModuleType, change: Callable[[dict[str, Any]], None], name: str, remedy: str
) -> None:
    found = _failed(checks, change)
    assert [check["name"] for check in found] == [name]
    assert remedy in found[0]["remedy"]


def test_all_problems_are_reported_at_once(checks: ModuleType) -> None:
    def break_everything(probe: dict[str, Any]) -> None:
        _set("machine", to="riscv64")(probe)
        _set("memory", to=GIB)(probe)
        _set("ports", to=[8443])(probe)

    names = [check["name"] for check in _failed(checks, break_everything, may_become=False)]
    assert names == ["architecture", "privileges", "memory", "port 8443"]


def test_an_existing_data_set_needs_no_free_space(checks: ModuleType) -> None:
    def with_data_set(probe: dict[str, Any]) -> None:
        probe["disks"]["/data/coco"].update(exists=True)
        probe["disks"]["/var/lib/coco"].update(exists=True, free=0)

    assert _failed(checks, with_data_set) == []


def test_folders_on_one_disk_share_its_free_space(checks: ModuleType) -> None:
    def one_disk(probe: dict[str, Any]) -> None:
        for disk in probe["disks"].values():
            disk.update(device=1, free=80 * GIB)

    assert [check["name"] for check in _failed(checks, one_disk)] == ["disk for data"]


def test_ports_and_images_of_a_provisioned_host_are_its_own(checks: ModuleType) -> None:
    def provisioned(probe: dict[str, Any]) -> None:
        probe["provisioned"] = True
        probe["ports"] = [22, 8443]
        probe["disks"]["/var/lib/docker"]["free"] = 2 * GIB

    assert _failed(checks, provisioned) == []


def test_an_unreachable_host_is_one_of_the_problems(checks: ModuleType) -> None:
    (found,) = checks.unreached({"node3": "Connection refused\nmore"})
    assert found["message"] == "Connection refused"
    assert checks.check_lines([found])[1].strip().startswith("-> check that `ssh`")


def test_probing_this_machine(host_probe: ModuleType) -> None:
    assert host_probe.system()["id"]
    assert host_probe.memory_bytes() > GIB / 4
    missing = host_probe.disk("/no/such/folder")
    assert missing["at"] == "/"
    assert not missing["exists"]
    assert missing["free"] > 0


def test_probing_ports(host_probe: ModuleType) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in host_probe.listening_ports()
        assert host_probe.reach({"name": "here", "address": "127.0.0.1", "port": port}) is None
    refused = host_probe.reach({"name": "here", "address": "127.0.0.1", "port": port})
    assert refused["resolved"]
    unknown = host_probe.reach({"name": "x", "address": "no-such-host.invalid", "port": 22})
    assert not unknown["resolved"]


STORAGE: dict[str, Any] = {
    "storage": "s3",
    "path": "/mnt/shared",
    "s3": {"bucket": "b", "endpoint_url": "https://s:9000"},
    "keys": {"s3_access_key": True, "s3_secret_key": True},
}


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({}, []),
        # The hosts' own credentials.
        ({"keys": {"s3_access_key": False, "s3_secret_key": False}}, []),
        ({"keys": {"s3_access_key": True, "s3_secret_key": False}}, ["one of the two keys"]),
        ({"s3": {}}, ["no bucket"]),
        ({"s3": {"endpoint_url": "s:9000"}}, ["no bucket", "'s:9000' is not a URL"]),
        ({"storage": "tape"}, ["'tape' is not a kind"]),
        ({"storage": "mount", "path": "shared"}, ["'shared' is not an absolute path"]),
        ({"storage": "mount", "s3": {}}, []),
    ],
)
def test_settings_of_the_checkpoint_storage(
    checks: ModuleType, changes: dict[str, Any], messages: list[str]
) -> None:
    found = checks.failed(checks.storage_checks({**STORAGE, **changes}))
    assert len(found) == len(messages)
    for check, message in zip(found, messages, strict=True):
        assert message in check["message"]
        assert check["remedy"]
