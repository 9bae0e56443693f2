"""A GPU that cannot be used is an error; nothing falls back to the CPU silently."""

from pathlib import Path

import pytest
import torch

from experiments.runtime.devices import DeviceError, require_usable_gpus

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
    require_usable_gpus(machine, machine / "missing")
