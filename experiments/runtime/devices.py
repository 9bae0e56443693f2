"""Which device a process computes on, and why a GPU that is there cannot be used."""

import os
import re
from pathlib import Path

import torch

# What CUDA 13, which torch and DALI are built for here, asks for (CUDA's release notes, table 3).
DRIVER_NEEDED = 580
_DRIVER = Path("/proc/driver/nvidia/version")


class DeviceError(ValueError):
    """A GPU that was given to this process cannot be used; says why and what to do."""


def require_usable_gpus(devices: Path = Path("/dev"), driver: Path = _DRIVER) -> None:
    """See that torch can use the GPUs that this process was given, if it was given any.

    Without this, a driver that is too old would mean days of training on the processor, after
    nothing but a warning.

    Args:
        devices: The folder of device files.
        driver: The file in which NVIDIA's kernel module tells its version.

    Raises:
        DeviceError: There are GPUs, and torch cannot use them.
    """
    given = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not given or hidden or torch.cuda.is_available():
        return
    version = _driver_version(driver)
    remedy = "To train on the processor all the same: CUDA_VISIBLE_DEVICES=-1"
    if version is not None and int(version.partition(".")[0]) < DRIVER_NEEDED:
        raise DeviceError(
            f"this machine's NVIDIA driver is {version}, and CUDA 13 needs {DRIVER_NEEDED} or "
            f"newer. Install a newer driver (make cluster-up does it on hosts where "
            f"nvidia_driver_package names one). {remedy}"
        )
    raise DeviceError(
        f"this machine has {len(given)} GPU(s), driver {version or 'unknown'}, and torch cannot "
        f"use them: {_reason()}. In a container, see that it was started with --gpus. {remedy}"
    )


def _driver_version(file: Path) -> str | None:
    """The version of NVIDIA's kernel module; None where it does not tell."""
    try:
        found = re.search(r"(?:Module.*?|version:?)\s+(\d+\.\d+(?:\.\d+)?)\b", file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _reason() -> str:
    """Torch's own words."""
    try:
        torch.cuda.init()
    except Exception as error:
        # Its kinds differ with the reason and with torch's version.
        return str(error).strip().splitlines()[0].rstrip(".")
    return "it sees none"


def allow_tf32() -> None:
    """Let a GPU multiply float32 matrices in TF32; training and evaluation must both call it.

    Convolutions use TF32 by torch's default. Nothing changes on a processor.
    """
    torch.set_float32_matmul_precision("high")


def best_device() -> torch.device:
    """A GPU where there is one, else the processor.

    Raises:
        DeviceError: There is a GPU, and it cannot be used.
    """
    require_usable_gpus()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
