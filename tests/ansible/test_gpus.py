"""Preflight names what keeps trials from a host's GPUs, as the probe of recorded hosts finds it."""

import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from tests.ansible.conftest import ANSIBLE, load
from tests.ansible.gpu_hosts import SCENARIOS, Card, Scenario

SETTINGS: dict[str, Any] = {
    "gpus": "auto",
    "names": [],
    "architectures": yaml.safe_load((ANSIBLE / "group_vars/all/derived.yml").read_text())[
        "gpu_architectures"
    ],
    "different_models": False,
    "driver_minimum": 580,
    "driver_package": "",
    "driver_candidate": None,
    "offline": False,
    "local": False,
}


@pytest.fixture(scope="module")
def gpus() -> ModuleType:
    return load("filter_plugins/gpus.py")


@pytest.fixture
def probe(host_probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Probe a host of a scenario, with the driver's version that the kernel tells."""

    def run(scenario: Scenario, loaded: str = "") -> dict[str, Any]:
        shutil.rmtree(tmp_path / "pci", ignore_errors=True)
        shutil.rmtree(tmp_path / "bin", ignore_errors=True)
        scenario.install(tmp_path, seconds=0)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        version = tmp_path / "version"
        version.write_text(loaded)
        return dict(host_probe.gpus(tmp_path / "pci", version))

    return run


def _failed(plugin: ModuleType, found: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    checks = plugin.gpu_checks(found, "node1", {**SETTINGS, **settings})
    return [check for check in checks if not check["ok"]]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_probe_records_what_nvidia_smi_says(probe: Any, name: str) -> None:
    expected = SCENARIOS[name].record()
    if name == "driver 470":
        # It knows too few fields, and is asked for those that it knows.
        unknown = {"capability": None, "memory_mib": None, "mig": False, "persistence": False}
        expected["devices"] = [{**device, **unknown} for device in expected["devices"]]
    found = probe(SCENARIOS[name])
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("processors only", {}),
        ("RTX 4090 x2", {}),
        ("A100 x8, slow", {}),
        ("HGX H100", {}),
        ("V100 x4", {"compute capability": "gpu_names"}),
        ("driver 535", {"NVIDIA driver": "580 or newer"}),
        ("driver 470", {"NVIDIA driver": "580 or newer"}),
        ("driver upgraded without a reboot", {"NVIDIA driver": "cluster-drain HOST=node1, reboot"}),
        ("driver not loaded", {"NVIDIA driver": "Secure Boot"}),
        ("no driver", {"NVIDIA driver": "nvidia_driver_package"}),
        ("driver refuses its GPU", {"NVIDIA driver": "open kernel modules"}),
        ("one GPU lost", {"GPUs": "fallen off the bus", "GPU lost": "dmesg | grep -i xid"}),
        ("one GPU lost after the driver found it", {"GPU lost": "cluster-drain HOST=node1"}),
        ("HGX H100 without fabric manager", {"NVLink fabric": "nvidia-fabricmanager-580"}),
        ("MIG", {}),
        ("MIG on the second of two", {"MIG": "divide all GPUs of node1 or none"}),
        ("RTX 4090 and GT 710", {"GPUs": 'gpu_names: ["NVIDIA GeForce RTX 4090"]'}),
        (
            "RTX 4090 and GT 1030",
            {
                "compute capability": "gpu_names",
                "GPU model": 'gpu_names: ["NVIDIA GeForce RTX 4090"]',
            },
        ),
        ("A100 and T400", {"GPU model": 'gpu_names: ["NVIDIA A100-SXM4-80GB"]'}),
    ],
)
def test_each_kind_of_host_is_named_with_its_remedy(
    gpus: ModuleType, probe: Any, name: str, problems: dict[str, str]
) -> None:
    failed = _failed(gpus, probe(SCENARIOS[name]))
    assert {check["name"] for check in failed} == set(problems)
    for check in failed:
        assert problems[check["name"]] in check["remedy"]
        assert check["message"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("RTX 4090 and GT 710", "RTX 4090"),
        ("RTX 4090 and GT 1030", "rtx 4090"),
        ("A100 and T400", "A100"),
    ],
)
def test_a_display_card_beside_named_gpus_is_no_slot(
    gpus: ModuleType, probe: Any, name: str, wanted: str
) -> None:
    found = probe(SCENARIOS[name])
    settings = {**SETTINGS, "names": [wanted]}
    assert _failed(gpus, found, names=[wanted]) == []
    assert gpus.used_gpus(found, settings) == [SCENARIOS[name].gpus[0].uuid]
    (problem,) = _failed(gpus, found, names=["B200"])
    assert "no GPU is called B200" in problem["message"]


def test_a_hanging_nvidia_smi_is_not_a_host_without_gpus(
    gpus: ModuleType,
    host_probe: ModuleType,
    probe: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    probe(SCENARIOS["RTX 4090 x2"])
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(host_probe, "GPU_SECONDS", 0.2)
    started = time.monotonic()
    found = host_probe.gpus(tmp_path / "pci", tmp_path / "version")
    assert time.monotonic() - started < 30
    assert (found["state"], found["on_bus"], found["visible"]) == ("slow", 2, 0)
    (problem,) = _failed(gpus, found)
    assert "nvidia-persistenced" in problem["remedy"]
    # Nor one whose driver is replaced.
    settings = {**SETTINGS, "driver_package": "nvidia-driver-580-server"}
    assert gpus.driver_action(found, settings) == "leave"


def test_gpus_can_be_required_or_ignored(gpus: ModuleType, probe: Any) -> None:
    none = probe(SCENARIOS["processors only"])
    assert [check["name"] for check in _failed(gpus, none, gpus="required")] == ["GPUs"]
    broken = probe(SCENARIOS["driver not loaded"])
    assert _failed(gpus, broken, gpus="none") == []
    assert gpus.used_gpus(broken, {**SETTINGS, "gpus": "none"}) == []


def test_a_gpu_of_a_virtual_machine_is_not_counted(
    host_probe: ModuleType, probe: Any, tmp_path: Path
) -> None:
    probe(SCENARIOS["RTX 4090 x2"])
    (tmp_path / "vfio-pci").mkdir()
    first = next(
        device
        for device in sorted((tmp_path / "pci").iterdir())
        if (device / "class").read_text().startswith("0x03")
    )
    (first / "driver").symlink_to(tmp_path / "vfio-pci")
    assert host_probe.gpus(tmp_path / "pci", tmp_path / "version")["on_bus"] == 1


@pytest.mark.parametrize(
    ("name", "loaded", "action"),
    [
        ("no driver", "", "install"),
        ("driver 535", "535.247.01", "install"),
        ("RTX 4090 x2", "580.95.05", "leave"),
        ("processors only", "", "leave"),
        ("driver upgraded without a reboot", "570.10.01", "leave"),
        ("driver not loaded", "", "leave"),
        # The tools are missing, but the driver runs.
        ("no driver", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05", "leave"),
    ],
)
def test_the_driver_is_installed_only_where_it_is_missing_or_too_old(
    gpus: ModuleType, probe: Any, name: str, loaded: str, action: str
) -> None:
    settings = {**SETTINGS, "driver_package": "nvidia-driver-580-server-open"}
    found = probe(SCENARIOS[name], loaded)
    assert gpus.driver_action(found, settings) == action
    assert gpus.driver_action(found, SETTINGS) == "leave"
    if action == "install":
        assert _failed(gpus, found, driver_package="nvidia-driver-580-server-open") == []


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"local": True}, "cannot reboot the machine that it runs on"),
        ({"driver_candidate": "535.247.01-1~deb12u1"}, "cuda-keyring"),
        ({"offline": True}, "the offline bundle has no drivers"),
        ({"driver_candidate": "580.95.05-0ubuntu0.24.04.2"}, None),
        ({"offline": True, "driver_candidate": "1:580.95.05-1"}, None),
    ],
)
def test_a_driver_that_cannot_be_installed_is_refused_before_anything_changes(
    gpus: ModuleType, probe: Any, settings: dict[str, Any], remedy: str | None
) -> None:
    found = probe(SCENARIOS["no driver"])
    failed = _failed(gpus, found, driver_package="nvidia-driver", **settings)
    assert [remedy in check["remedy"] for check in failed if remedy] == [True] * bool(remedy)
    assert len(failed) == bool(remedy)


def test_a_blackwell_gpu_needs_open_kernel_modules(gpus: ModuleType, probe: Any) -> None:
    found = probe(Scenario(cards=(Card("0x2b85"),), driver=None))
    (problem,) = _failed(gpus, found, driver_package="nvidia-driver-580-server")
    assert "nvidia-driver-580-server-open" in problem["remedy"]
    assert _failed(gpus, found, driver_package="nvidia-driver-580-server-open") == []


def test_an_old_gpu_is_named_even_without_a_driver(gpus: ModuleType, probe: Any) -> None:
    failed = _failed(gpus, probe(Scenario(cards=(Card("0x1db5"),), driver=None)))
    assert {check["name"] for check in failed} == {"GPU model", "NVIDIA driver"}
    assert "10de:1db5 is older than Turing" in failed[0]["message"]


def test_the_architectures_are_those_of_torch() -> None:
    flags = torch._C._cuda_getArchFlags()
    if not flags:
        pytest.skip("this torch is built without CUDA")
    built = [flag.removeprefix("sm_") for flag in flags.split()]
    assert [f"{flag[:-1]}.{flag[-1]}" for flag in built] == SETTINGS["architectures"]


def test_a_pool_has_one_kind_of_slots(gpus: ModuleType) -> None:
    mixed = {"a": {"pool": "default", "gpus": 4}, "b": {"pool": "default", "gpus": 0}}
    (problem,) = gpus.pool_checks(mixed, False)
    assert problem["message"] == "GPUs in the pool default: a 4, b 0"
    assert "give b a pool of their own" in problem["remedy"]
    # Not even if numbers may differ.
    assert gpus.pool_checks(mixed, True) == [problem]
    mixed["b"]["pool"] = "processors"
    assert gpus.pool_checks(mixed, False) == []


def test_different_gpu_counts_are_a_problem_unless_allowed(gpus: ModuleType) -> None:
    agents = {f"node{count}": {"pool": "default", "gpus": count} for count in (2, 4)}
    (problem,) = gpus.pool_checks(agents, False)
    assert problem["message"] == "GPUs in the pool default: node2 2, node4 4"
    assert gpus.pool_checks(agents, True) == []
