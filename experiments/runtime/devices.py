"""Selects the device to compute on, and reports GPUs that cannot be used."""

import os
import re
from pathlib import Path

import torch

from experiments.runtime.gpus import (
    PCI_DEVICES,
    DeviceError,
    gpus_on_bus,
    require_driver,
    runs_on,
    unsupported,
)

_DRIVER = Path("/proc/driver/nvidia/version")
_WAY_OUT = "To use the CPU anyway, set CUDA_VISIBLE_DEVICES=-1"


def gpus_are_hidden() -> bool:
    """Return whether the environment says that no GPU is to be used."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def _device_files(devices: Path) -> int:
    """Return for how many GPUs there is a device file."""
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))


def require_usable_gpus(devices: Path = Path("/dev"), driver: Path = _DRIVER) -> None:
    """Check that torch can use this machine's GPUs, if there are any and they are not hidden.

    With a driver that is too old, torch merely warns, and would train on the CPU for days. On a GPU
    that it has no code for, it fails at the first kernel.

    Args:
        devices: The folder of device files.
        driver: The file with the version of NVIDIA's kernel module.

    Raises:
        DeviceError: There are GPUs, but torch cannot use them.
    """
    if torch.cuda.is_available():
        require_capability(_own_gpu())
        return
    gpus = _device_files(devices)
    if not gpus or gpus_are_hidden():
        return
    version = _driver_version(driver)
    try:
        require_driver(version)
    except DeviceError as error:
        raise DeviceError(f"{error}. {_WAY_OUT}") from None
    raise DeviceError(
        f"this machine has {gpus} GPU(s), driver {version or 'unknown'}, but torch cannot "
        f"use them: {_torch_error()}. If this is a container, start it with --gpus. {_WAY_OUT}"
    )


def require_capability(index: int) -> None:
    """Check that torch has code for a GPU.

    Raises:
        DeviceError: It has none; the message says for which GPUs it has.
    """
    architectures = torch.cuda.get_arch_list()
    if index >= torch.cuda.device_count() or not architectures:
        return
    capability = torch.cuda.get_device_capability(index)
    if not runs_on(capability, architectures):
        gpu = f"GPU {index} ({torch.cuda.get_device_name(index)})"
        raise DeviceError(
            f"{unsupported(gpu, capability, architectures)}. To use another GPU, set "
            f"CUDA_VISIBLE_DEVICES to its number. {_WAY_OUT}"
        )


def _own_gpu() -> int:
    """Return the number of this rank's GPU; every launcher sets one of these variables."""
    names = ("LOCAL_RANK", "HOROVOD_LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def usable_gpu_count() -> int:
    """Return how many GPUs torch can use; 0 if the environment hides them."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def idle_gpus(devices: Path = Path("/dev"), pci: Path = PCI_DEVICES) -> str | None:
    """Say that this machine has GPUs of which the driver knows nothing; None if it has none."""
    if torch.cuda.is_available() or gpus_are_hidden() or _device_files(devices):
        return None
    count = gpus_on_bus(pci)
    if not count:
        return None
    return (
        f"this machine has {count} NVIDIA GPU(s) on its PCI bus that are not used: the driver is "
        "missing or not loaded (nvidia-smi says more), or this is a container that was started "
        "without --gpus"
    )


def _driver_version(file: Path) -> str | None:
    """Return the version of NVIDIA's kernel module, or None if it is unknown."""
    try:
        found = re.search(r"(?:Module.*?|version:?)\s+(\d+\.\d+(?:\.\d+)?)\b", file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _torch_error() -> str:
    """Return torch's error when it initialises CUDA."""
    try:
        torch.cuda.init()
    except Exception as error:
        # The exception's type depends on the reason and on torch's version.
        return str(error).strip().splitlines()[0].rstrip(".")
    return "it finds none"


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU computes in bfloat16 itself, rather than by emulation.

    From Ampere on they do, as torch.cuda.is_bf16_supported says of the current device.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def allow_tf32() -> None:
    """Allow TF32 for float32 matrix products; training and evaluation must both call this.

    Convolutions use TF32 by torch's default. This has no effect on a CPU.
    """
    torch.set_float32_matmul_precision("high")


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU.

    Raises:
        DeviceError: There is a GPU that cannot be used.
    """
    require_usable_gpus()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
