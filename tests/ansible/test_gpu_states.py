"""GPUs that are listed and do not train are named, with what to do."""

import json
import os
import stat
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.ansible.conftest import load
from tests.ansible.gpu_hosts import SCENARIOS


@pytest.fixture(scope="module")
def gpu_states() -> ModuleType:
    return load("filter_plugins/gpu_states.py")


# Scenario -> name, whether it passes, parts of the message, part of the remedy.
FOUND = {
    "one GPU lost": ("GPU lost", False, "no answer from GPU 1", "index out of range"),
    "one GPU lost after the driver found it": (
        *("GPU lost", False, "no answer from GPU 1 (NVIDIA GeForce RTX 3090)", "grep -i xid"),
    ),
    "HGX H100": ("NVLink fabric", True, "all GPUs have joined", ""),
    "HGX H100 without fabric manager": (
        "NVLink fabric",
        False,
        "In Progress for 8 of 8 GPUs",
        "nvidia-fabricmanager-580",
    ),
    "MIG": ("MIG", True, "each instance of GPU 0 is a slot; trials there need slots_per_tr", ""),
    "MIG on the second of two": (
        *("MIG", False, "GPU 1 of 2 divided: they become whole slots", "slots_per_trial: 1"),
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_states_of_each_kind_of_host(gpu_states: ModuleType, scenario: str) -> None:
    found = gpu_states.state_checks(SCENARIOS[scenario].record(), "node1")
    if scenario not in FOUND:
        assert found == []
        return
    name, passes, message, remedy = FOUND[scenario]
    (check,) = found
    assert (check["name"], check["ok"], check["host"]) == (name, passes, "node1")
    assert message in check["message"]
    assert remedy in check["remedy"]


def test_the_first_gpu_decides_what_an_agent_lists(gpu_states: ModuleType) -> None:
    record = SCENARIOS["MIG on the second of two"].record()
    record["devices"][0]["mig"], record["devices"][1]["mig"] = True, False
    (check,) = gpu_states.state_checks(record, "node1")
    assert check["message"] == "GPU 0 of 2 divided: the others become no slots"


def test_what_is_unknown_is_no_failure(gpu_states: ModuleType) -> None:
    """Records of an older probe, and of drivers that know fewer fields."""
    assert gpu_states.state_checks({"on_bus": 1, "visible": 1, "driver": "580"}, "node1") == []
    record = SCENARIOS["driver 470"].record()
    for device in record["devices"]:
        device |= {"memory_mib": None, "capability": None, "fabric": None}
    assert gpu_states.state_checks(record, "node1") == []
    # GPUs of a kind that could join a fabric, in a host that has none.
    record["devices"][0]["fabric"] = "Not Supported"
    (check,) = gpu_states.state_checks(record, "node1")
    assert check["ok"]


@pytest.fixture(scope="module")
def gpu_access() -> ModuleType:
    return load("roles/doctor/files/gpu_access.py")


NODES = {"nvidia0": (195, 0), "nvidia1": (195, 1), "nvidiactl": (195, 255), "nvidia-uvm": (508, 0)}


def test_device_files_without_a_link(
    gpu_access: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, links = tmp_path / "dev", tmp_path / "char"
    links.mkdir()
    (devices / "nvidia-caps").mkdir(parents=True)
    for name in NODES:
        (devices / name).touch()
    for major, minor in ((195, 0), (195, 255)):
        (links / f"{major}:{minor}").touch()
    real = Path.stat

    def character_device(file: Path, **options: Any) -> Any:
        if file.parent != devices or file.name not in NODES:
            return real(file, **options)
        return SimpleNamespace(st_mode=stat.S_IFCHR, st_rdev=os.makedev(*NODES[file.name]))

    monkeypatch.setattr(Path, "stat", character_device)
    assert gpu_access.unlinked(devices, links) == ["nvidia-uvm", "nvidia1"]


DOCKER = """#!/bin/sh
case $1 in
  info) echo "systemd 2" ;;
  ps) printf 'a1\nb2\nc3\n' ;;
  inspect) cat {inspected} ;;
  exec)
    [ "$3 $4" = "nvidia-smi -L" ] || exit 9
    if [ "$2" = b2 ]; then echo "Failed to initialize NVML: Unknown Error"; exit 255; fi
    echo "GPU 0: NVIDIA L4 (UUID: GPU-1)"
    ;;
esac
"""


@pytest.fixture
def found(
    gpu_access: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, Any]:
    """What is found on a host with an agent, a trial that lost its GPUs, and another container."""
    gpu = [{"Driver": "nvidia", "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu", "compute"]]}]
    cdi = [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"], "Capabilities": None}]
    other = [{"Driver": "cdi", "DeviceIDs": ["vendor.com/net=0"], "Capabilities": [["net"]]}]
    names = (
        *(("a1", "determined-agent", gpu), ("b2", "trial", gpu), ("c3", "database", None)),
        *(("d4", "by CDI", cdi), ("e5", "network", other)),
    )
    inspected = tmp_path / "inspected"
    inspected.write_text(
        json.dumps(
            [
                {"Id": key, "Name": f"/{name}", "HostConfig": {"DeviceRequests": requests}}
                for key, name, requests in names
            ]
        )
    )
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin/docker"
    docker.write_text(DOCKER.format(inspected=inspected))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    gpu_access.main(str(tmp_path), str(tmp_path))
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def _access(gpu_states: ModuleType, found: dict[str, Any]) -> list[dict[str, Any]]:
    checks = gpu_states.access_checks({"stdout": json.dumps(found)}, "node1", "determined-agent")
    return list(checks)


def test_containers_that_lost_their_gpus(gpu_states: ModuleType, found: dict[str, Any]) -> None:
    assert [(each["name"], each["rc"]) for each in found["containers"]] == [
        ("determined-agent", 0),
        ("trial", 255),
        ("by CDI", 0),
    ]
    lost, later = _access(gpu_states, found)
    assert not lost["ok"]
    assert lost["message"] == "lost by trial: Failed to initialize NVML"
    assert "docker kill trial on node1" in lost["remedy"]
    assert later["ok"]
    found["containers"][0] |= {"rc": 255, "output": "Failed to initialize NVML: Unknown Error"}
    assert (
        "systemctl restart determined-agent; docker kill" in _access(gpu_states, found)[0]["remedy"]
    )
    # A container without nvidia-smi says nothing.
    for each in found["containers"]:
        each["output"] = 'exec: "nvidia-smi": executable file not found in $PATH'
    assert _access(gpu_states, found)[0]["ok"]


@pytest.mark.parametrize(
    ("driver", "version", "unlinked", "stays"),
    [
        ("systemd", "2", ["nvidia0"], False),
        ("systemd", "2", [], True),
        ("cgroupfs", "2", ["nvidia0"], True),
        ("systemd", "1", ["nvidia0"], False),
    ],
)
def test_a_daemon_reload(
    gpu_states: ModuleType, driver: str, version: str, unlinked: list[str], stays: bool
) -> None:
    found = {"driver": driver, "version": version, "unlinked": unlinked, "containers": []}
    kept, later = _access(gpu_states, found)
    assert kept["ok"]
    assert later["ok"] == stays
    if not stays:
        assert "nvidia0 without a link in /dev/char" in later["message"]
        assert "create-dev-char-symlinks --create-all" in later["remedy"]
    assert gpu_states.access_checks({}, "node1", "determined-agent") == []
    assert gpu_states.access_checks({"stdout": "", "rc": 1}, "node1", "determined-agent") == []
