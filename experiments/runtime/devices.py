"""Selects the device to compute on, and reports GPUs that cannot be used."""

import os
import re
from pathlib import Path

import torch

# For CUDA 13, which the installed torch and DALI are built for (CUDA's release notes, table 3).
MIN_DRIVER_VERSION = 580
_DRIVER = Path("/proc/driver/nvidia/version")


class DeviceError(ValueError):
    """This machine's GPUs cannot be used; the message says why and what to do."""


def require_usable_gpus(devices: Path = Path("/dev"), driver: Path = _DRIVER) -> None:
    """Check that torch can use this machine's GPUs, if there are any and they are not hidden.

    With a driver that is too old, torch merely warns, and would train on the CPU for days.

    Args:
        devices: The folder of device files.
        driver: The file with the version of NVIDIA's kernel module.

    Raises:
        DeviceError: There are GPUs, but torch cannot use them.
    """
    gpus = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not gpus or hidden or torch.cuda.is_available():
        return
    version = _driver_version(driver)
    remedy = "To use the CPU anyway, set CUDA_VISIBLE_DEVICES=-1"
    if version is not None and int(version.partition(".")[0]) < MIN_DRIVER_VERSION:
        raise DeviceError(
            f"this machine's NVIDIA driver is {version}, but CUDA 13 needs {MIN_DRIVER_VERSION} or "
            f"newer. Install a newer driver (make cluster-up installs the one that the setting "
            f"nvidia_driver_package names). {remedy}"
        )
    raise DeviceError(
        f"this machine has {len(gpus)} GPU(s), driver {version or 'unknown'}, but torch cannot "
        f"use them: {_torch_error()}. If this is a container, start it with --gpus. {remedy}"
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
