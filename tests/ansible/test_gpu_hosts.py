"""The stand-in for nvidia-smi answers as the real one does, field by field."""

import subprocess
from pathlib import Path

import pytest

from tests.ansible.gpu_hosts import SCENARIOS

FIELDS = (
    "index,uuid,name,driver_version,compute_cap,memory.total,mig.mode.current,persistence_mode,"
    "fabric.state"
)


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "bin/nvidia-smi"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _query(folder: Path, format_: str = "csv,noheader,nounits") -> subprocess.CompletedProcess[str]:
    return _run(folder, f"--query-gpu={FIELDS}", f"--format={format_}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_installed(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    scenario.install(tmp_path, seconds=0)
    displays = [
        device
        for device in (tmp_path / "pci").iterdir()
        if (device / "class").read_text().startswith("0x03")
        and (device / "vendor").read_text().strip() == "0x10de"
    ]
    assert len(displays) == scenario.on_bus
    assert (tmp_path / "bin/nvidia-smi").exists() == (scenario.driver is not None)
    if scenario.driver and not scenario.unknown_fields:
        answer = _query(tmp_path)
        assert answer.returncode == scenario.status
        rows = [line.split(", ") for line in answer.stdout.splitlines()]
        if scenario.status == 0:
            assert [int(row[0]) for row in rows] == [gpu.index for gpu in scenario.gpus]
            assert {len(row) for row in rows} == {9}


def test_a_row_of_a_geforce(tmp_path: Path) -> None:
    SCENARIOS["RTX 4090 x2"].install(tmp_path)
    lines = _query(tmp_path).stdout.splitlines()
    uuid = SCENARIOS["RTX 4090 x2"].gpus[1].uuid
    assert (
        lines[1]
        == f"1, {uuid}, NVIDIA GeForce RTX 4090, 580.95.05, 8.9, 24564, [N/A], Enabled, N/A"
    )
    assert ", 24564 MiB, " in _query(tmp_path, "csv,noheader").stdout


def test_an_old_driver_does_not_know_a_field(tmp_path: Path) -> None:
    SCENARIOS["driver 470"].install(tmp_path)
    answer = _query(tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == 'Field "compute_cap" is not a valid field to query.\n'
    older = _run(tmp_path, "--query-gpu=name,driver_version", "--format=csv,noheader")
    assert older.stdout == "NVIDIA GeForce RTX 3090, 470.256.02\n"


def test_a_lost_gpu_is_told_on_stderr_only(tmp_path: Path) -> None:
    SCENARIOS["one GPU lost"].install(tmp_path)
    answer = _query(tmp_path)
    assert answer.returncode == 0
    assert answer.stderr == (
        "Unable to determine the device handle for GPU1: 0000:02:00.0: Unknown Error\n"
    )
    assert [line[0] for line in answer.stdout.splitlines()] == ["0", "2", "3"]


def test_instances_are_listed_under_their_gpu(tmp_path: Path) -> None:
    SCENARIOS["MIG"].install(tmp_path)
    gpu, *instances = _run(tmp_path, "-L").stdout.splitlines()
    assert gpu.startswith("GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-")
    assert len(instances) == 4
    assert instances[0].startswith("  MIG 3g.40gb     Device  0: (UUID: MIG-")


def test_an_upgraded_driver_fails_as_it_does_until_a_reboot(tmp_path: Path) -> None:
    SCENARIOS["driver upgraded without a reboot"].install(tmp_path)
    answer = _query(tmp_path)
    assert answer.returncode == 18
    assert answer.stdout.startswith("Failed to initialize NVML: Driver/library version mismatch\n")
