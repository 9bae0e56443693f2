"""A GPU that cannot be used is an error; nothing falls back to the CPU silently."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import determined as det
import pytest
import torch
from determined import gpu

from experiments.runtime.determined_internals import compute_on
from experiments.runtime.devices import (
    idle_gpus,
    require_capability,
    require_usable_gpus,
    usable_gpu_count,
)
from experiments.runtime.gpus import DeviceError
from tests.gpu_machines import GpuMachine

# /proc/driver/nvidia/version of the open and of the proprietary kernel module.
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs@builder)\n"
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sun Jul 20 20:14:12 UTC 2025\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Device files of a machine with two GPUs that torch does not find."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("text", [OPEN, PROPRIETARY])
def test_an_old_driver_is_reported(machine: Path, text: str) -> None:
    version = machine / "version"
    version.write_text(text.format("570.133.20") + "GCC version:  gcc version 12.2.0 (Debian)\n")
    with pytest.raises(DeviceError, match=r"driver is 570\.133\.20, but CUDA 13 needs 580"):
        require_usable_gpus(machine, version)


def test_other_reasons_are_reported(machine: Path) -> None:
    version = machine / "version"
    version.write_text(OPEN.format("580.95.05"))
    with pytest.raises(DeviceError, match=r"2 GPU\(s\), driver 580\.95\.05, but torch cannot"):
        require_usable_gpus(machine, version)
    with pytest.raises(DeviceError, match="driver unknown"):
        require_usable_gpus(machine, machine / "missing")


def test_no_hidden_or_working_gpus_pass(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hidden:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "-1")
        require_usable_gpus(machine, machine / "missing")
    require_usable_gpus(machine / "empty", machine / "missing")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    require_usable_gpus(machine, machine / "missing")


def working(monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, tuple[int, int]]) -> None:
    """Let torch find these GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpus[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index][1])


def test_a_gpu_that_torch_has_no_code_for_is_reported(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank checks its own GPU, and torch itself says what it has code for."""
    for name in ("LOCAL_RANK", "HOROVOD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    working(monkeypatch, ("NVIDIA L4", (8, 9)), ("Tesla V100-SXM2-32GB", (7, 0)))
    require_usable_gpus(machine)
    for name in ("LOCAL_RANK", "HOROVOD_LOCAL_RANK"):
        with monkeypatch.context() as rank:
            rank.setenv(name, "1")
            with pytest.raises(
                DeviceError,
                match=r"GPU 1 \(Tesla V100-SXM2-32GB\) has compute capability 7\.0.*sm_75.*sm_120.*"
                "CUDA_VISIBLE_DEVICES",
            ):
                require_usable_gpus(machine)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
    require_capability(1)
    with pytest.raises(DeviceError, match="NVIDIA L4"):
        require_capability(0)


def test_gpus_without_a_driver_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an error: training on processors is what a machine without a driver can do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    machine = GpuMachine(tmp_path / "pci", tmp_path / "bin")
    assert idle_gpus(tmp_path / "dev", machine.pci) is None
    machine.with_cards(2, driver="nouveau")
    assert "2 NVIDIA GPU(s)" in str(idle_gpus(tmp_path / "dev", machine.pci))
    with monkeypatch.context() as hidden:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "-1")
        assert idle_gpus(tmp_path / "dev", machine.pci) is None
    (tmp_path / "dev" / "nvidia0").touch()
    assert idle_gpus(tmp_path / "dev", machine.pci) is None


@pytest.mark.parametrize("count", [0, 2])
def test_determined_computes_where_torch_does(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Whatever nvidia-smi lists: on a cluster and without one."""
    monkeypatch.setattr(gpu, "get_gpu_uuids", lambda: ["GPU-0a"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    compute_on(usable_gpu_count(), None)
    assert len(gpu.get_gpu_uuids()) == count
    info: Any = SimpleNamespace(_resources_info=det.ResourcesInfo(gpu_uuids=["GPU-0a"]))
    compute_on(usable_gpu_count(), info)
    assert len(info._resources_info.gpu_uuids) == count
