"""A GPU that cannot be used is an error, not a run on the processor."""

from pathlib import Path

import pytest
import torch

from experiments.runtime.devices import DeviceError, require_usable_gpus

# What the open and the closed kernel module write into /proc/driver/nvidia/version.
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs@builder)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sun Jul 20 20:14:12 UTC 2025\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs that torch does not see."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("text", [OPEN, CLOSED])
def test_an_old_driver_is_named(machine: Path, text: str) -> None:
    version = machine / "version"
    version.write_text(text.format("570.133.20") + "GCC version:  gcc version 12.2.0 (Debian)\n")
    with pytest.raises(DeviceError, match=r"driver is 570\.133\.20, and CUDA 13 needs 580"):
        require_usable_gpus(machine, version)


def test_another_reason_is_torchs_own(machine: Path) -> None:
    version = machine / "version"
    version.write_text(OPEN.format("580.95.05"))
    with pytest.raises(DeviceError, match=r"2 GPU\(s\), driver 580\.95\.05, and torch cannot"):
        require_usable_gpus(machine, version)
    with pytest.raises(DeviceError, match="driver unknown"):
        require_usable_gpus(machine, machine / "missing")


def test_machines_that_are_sound(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden GPUs, none at all, or GPUs that work."""
    with monkeypatch.context() as hidden:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "-1")
        require_usable_gpus(machine, machine / "missing")
    require_usable_gpus(machine / "empty", machine / "missing")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_usable_gpus(machine, machine / "missing")
