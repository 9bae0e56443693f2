"""Doctor and status, on a healthy cluster and on clusters with one problem each."""

import copy
import json
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.ansible.conftest import ANSIBLE
from tests.ansible.gpu_hosts import SCENARIOS
from tests.ansible.test_gpus import SETTINGS as GPU_SETTINGS
from tests.ansible.test_preflight import SETTINGS, VALID_PROBE

IMAGE = {"Id": "sha256:image"}
UNITS = {
    f"determined-{name}.service": "active" for name in ("agent", "master", "postgres", "firewall")
}
SERVICES = yaml.safe_load((ANSIBLE / "group_vars/all/services.yml").read_text())["cluster_services"]
# The templates of these are true in the cluster of this file.
SERVICES["firewall"]["enabled"] = True
DOCTOR_SETTINGS = {
    "task_image": "trial:1",
    "read_mb_per_s": 50,
    "storage_location": "/mnt/shared",
    "storage_remedy": "mount the same storage there",
    "data_path": "/data/coco",
    "secrets": "/project/.secrets/main",
    "services": SERVICES,
    "cpu_slots": {"node1": 2, "node2": 2},
    "trial_interfaces": {"node1": "", "node2": ""},
    "host": {**SETTINGS, "ports": {}},
    "gpus": {"node1": GPU_SETTINGS, "node2": GPU_SETTINGS},
}


CERTIFICATES = {
    "node1": {
        "hosts/node1": "certificate",
        "master": "certificate of the master",
        "ca": "certificate authority",
        "agents-ca": "authority of the agents",
    },
    "node2": {"hosts/node2": "certificate"},
}


class Cluster:
    """A healthy cluster of two hosts, for tests to break."""

    def __init__(self) -> None:
        probe = {
            **copy.deepcopy(VALID_PROBE),
            "provisioned": True,
            "gpus": SCENARIOS["RTX 4090 x2"].record(),
            "units": UNITS,
            "exposed": [],
            "interfaces": {"lo": ["127.0.0.1"], "eth0": []},
            "data": {"name": "coco", "version": "abc"},
        }
        self.hosts: dict[str, dict[str, Any]] = {
            name: {
                "address": f"10.0.0.{number}",
                "master": number == 1,
                "agent": True,
                "probe": copy.deepcopy(probe),
                "error": "",
                "firewall": {
                    "rules": "in force",
                    "members": ["10.0.0.1", "10.0.0.2"],
                    "stranger": {"IPv4": {"ssh": "open", "port": "dropped"}},
                },
                "images": [dict(IMAGE)],
            }
            for number, name in enumerate(("node1", "node2"), 1)
        }
        for host in self.hosts.values():
            host["probe"]["interfaces"]["eth0"] = [host["address"]]
        # Host -> image -> compared with this machine's.
        self.images = {name: {"trial:1": "ok", "agent:1": "ok"} for name in self.hosts}
        slot = {"container": None, "device": {"type": "TYPE_CUDA"}}
        self.api: dict[str, Any] = {
            "url": "https://10.0.0.1:8443",
            "error": "",
            "master": {"version": "0.38.1"},
            "agents": [
                {"id": name, "enabled": True, "version": "0.38.1", "slots": {"0": slot, "1": slot}}
                for name in self.hosts
            ],
            "experiments": [
                {"id": 7, "name": "run", "state": "STATE_RUNNING", "progress": 0.5, "numTrials": 1},
                {"id": 6, "name": "old", "state": "STATE_COMPLETED", "progress": 1, "numTrials": 1},
            ],
        }
        result = {"backend": "gloo", "ranks": 2, "correct": True, "gigabytes_per_second": 1.2}
        self.measurements: dict[str, dict[str, Any]] = {
            name: {
                "tls": {"status": 200},
                "certificates": [
                    {
                        "item": {"file": file, "name": certificate},
                        "valid_at": {"soon": True},
                        "not_after": "20990101000000Z",
                    }
                    for file, certificate in CERTIFICATES[name].items()
                ],
                "daemon": {"changed": False, "installed": True, "userns_remap": ""},
                "read": {"bytes": 10**9, "seconds": 2.0},
                "storage": {"rc": 0},
                "gpus": {},
                "gpu_access": {},
                "all_reduce": {"stdout": "noise\n" + json.dumps(result), "rc": 0},
            }
            for name in self.hosts
        }


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def _checks(cluster: Cluster, doctor: ModuleType, status: ModuleType) -> list[dict[str, Any]]:
    found = status.cluster_status(cluster.hosts, cluster.api, "main", "trial:1")
    settings = {**DOCTOR_SETTINGS, "images": {"states": cluster.images}}
    settings["agents"] = cluster.api["agents"]
    checks = doctor.doctor_checks(cluster.hosts, found, cluster.measurements, settings)
    return list(checks)


def _failed(cluster: Cluster, doctor: ModuleType, status: ModuleType) -> list[tuple[str, str]]:
    found = _checks(cluster, doctor, status)
    assert all(check["remedy"] for check in found if not check["ok"])
    return [(check["host"], check["name"]) for check in found if not check["ok"]]


def test_a_healthy_cluster_passes(cluster: Cluster, doctor: ModuleType, status: ModuleType) -> None:
    found = _checks(cluster, doctor, status)
    assert [check for check in found if not check["ok"]] == []
    messages = {check["message"] for check in found}
    assert "1.2 GB/s over 2 hosts (gloo)" in messages
    assert "500 MB/s uncached, over 1000 MB" in messages


def test_the_end_of_every_certificate_is_shown(
    cluster: Cluster, doctor: ModuleType, status: ModuleType
) -> None:
    for result in cluster.measurements["node1"]["certificates"]:
        result["valid_at"]["soon"] = False
    soon = datetime.now(UTC) + timedelta(days=20, hours=12)
    master, authority, agents = cluster.measurements["node1"]["certificates"][1:]
    master["not_after"] = f"{soon:%Y%m%d%H%M%SZ}"
    authority["not_after"] = "20200101000000Z"
    del agents["not_after"]  # The file is missing.
    found = {check["name"]: check for check in _checks(cluster, doctor, status)[::-1]}
    ends = f"valid until {soon:%Y-%m-%d}, 20 more days"
    assert found["certificate of the master"]["message"] == ends
    assert "make cluster-certificates" in found["certificate of the master"]["remedy"]
    assert found["certificate authority"]["message"] == "ended 2020-01-01"
    assert "/project/.secrets/main/ca.key" in found["certificate authority"]["remedy"]
    assert found["authority of the agents"]["message"] == "missing or unreadable"
    assert "NEW_AUTHORITY=yes" in found["authority of the agents"]["remedy"]


def test_without_this_machines_images_those_of_hosts_must_exist(
    cluster: Cluster, doctor: ModuleType, status: ModuleType
) -> None:
    cluster.images.clear()
    assert _failed(cluster, doctor, status) == []
    cluster.hosts["node2"]["images"].clear()
    assert _failed(cluster, doctor, status) == [("node2", "task image")]


def test_an_unreachable_host_is_reported(
    cluster: Cluster, doctor: ModuleType, status: ModuleType
) -> None:
    cluster.hosts["node2"] |= {"probe": None, "error": "No route to host"}
    cluster.api["agents"].pop()
    assert _failed(cluster, doctor, status) == [("node2", "SSH")]


def test_a_master_that_does_not_answer_is_reported(
    cluster: Cluster, doctor: ModuleType, status: ModuleType
) -> None:
    cluster.api |= {"error": "Connection refused", "master": {}, "agents": []}
    failed = _failed(cluster, doctor, status)
    assert failed == [("master", "API"), ("node1", "agent"), ("node2", "agent")]


@pytest.mark.parametrize(
    ("break_it", "failed"),
    [
        (
            lambda c: c.hosts["node2"]["probe"]["units"].pop("determined-agent.service"),
            [("node2", "determined-agent")],
        ),
        # The unit is active in each of these.
        (
            lambda c: c.hosts["node2"]["firewall"].update(rules="missing"),
            [("node2", "firewall rules")],
        ),
        (
            lambda c: c.hosts["node2"].update(firewall={"rules": "nft: not found"}),
            [("node2", "firewall rules"), ("node2", "firewall members")],
        ),
        (
            lambda c: c.hosts["node2"]["firewall"]["members"].append("10.0.0.9"),
            [("node2", "firewall members")],
        ),
        (
            lambda c: c.hosts["node1"]["firewall"]["members"].append("10.0.0.3"),
            [("node2", "firewall members")],
        ),
        (
            lambda c: c.hosts["node2"]["firewall"]["stranger"]["IPv4"].update(port="open"),
            [("node2", "closed to strangers (IPv4)")],
        ),
        (
            lambda c: c.measurements["node2"].update(tls={"status": -1}),
            [("node2", "TLS to the master")],
        ),
        (
            lambda c: c.measurements["node2"]["certificates"][0]["valid_at"].update(soon=False),
            [("node2", "certificate")],
        ),
        (
            lambda c: [each.pop("valid_at") for each in c.measurements["node1"]["certificates"]],
            [("node1", name) for name in CERTIFICATES["node1"].values()],
        ),
        (
            lambda c: c.hosts["node2"]["probe"].update(exposed=[{"port": 5432}]),
            [("node2", "database closed")],
        ),
        (lambda c: c.images["node2"].update({"trial:1": "missing"}), [("node2", "task image")]),
        (
            lambda c: c.images["node2"].update({"trial:1": "different", "agent:1": "different"}),
            [("node2", "task image"), ("node2", "image agent:1")],
        ),
        (lambda c: c.api["agents"][1].update(enabled=False), [("node2", "enabled")]),
        (lambda c: c.api["agents"][1].update(version="0.37"), [("node2", "agent's version")]),
        (
            lambda c: c.api["agents"][1].update(slots={}),
            [("node2", "agent"), ("node2", "slots")],
        ),
        # One GPU has been lost, or the agent has an older configuration.
        (lambda c: c.api["agents"][1]["slots"].pop("1"), [("node2", "slots")]),
        (
            lambda c: c.hosts["node2"]["probe"].update(gpus=SCENARIOS["processors only"].record()),
            [("node2", "slots")],
        ),
        (
            lambda c: c.measurements["node2"]["read"].update(seconds=21.0),
            [("node2", "reading the data set")],
        ),
        (
            lambda c: c.measurements["node2"].update(storage={"rc": 1}),
            [("node2", "checkpoint storage")],
        ),
        (
            lambda c: c.measurements["node2"].update(
                all_reduce={"stdout": "", "stderr": "timed out"}
            ),
            [("node2", "all-reduce")],
        ),
        (
            lambda c: c.hosts["node2"]["probe"].update(data={"name": None, "version": None}),
            [("node2", "data set")],
        ),
        (
            lambda c: c.measurements["node2"]["daemon"].update(problem="Docker does not start"),
            [("node2", "daemon.json")],
        ),
        (lambda c: c.api["agents"].append({"id": "stray"}), [("master", "agents")]),
        (
            lambda c: c.hosts["node2"]["probe"].update(interfaces={"eno1": ["10.0.0.2"]}),
            [("all", "interface of trials")],
        ),
    ],
)
def test_each_problem_is_reported(
    cluster: Cluster, doctor: ModuleType, status: ModuleType, break_it: Any, failed: list[Any]
) -> None:
    break_it(cluster)
    assert _failed(cluster, doctor, status) == failed


def test_status_counts_slots_and_active_experiments(cluster: Cluster, status: ModuleType) -> None:
    cluster.api["agents"][0]["slots"]["1"] = {"container": {"id": "c"}}
    found = status.cluster_status(cluster.hosts, cluster.api, "main", "trial:1")
    assert [(host["slots_used"], host["slots"]) for host in found["hosts"]] == [(1, 2), (0, 2)]
    assert found["hosts"][0]["image"] == "sha256:image"
    active = {row["id"]: (row["state"], row["active"]) for row in found["experiments"]}
    assert active == {7: ("RUNNING", True), 6: ("COMPLETED", False)}
    json.dumps(found)
