"""The provenance of results: the code's commit, package versions and the machine."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """Return the code's commit, with -dirty if it was changed; None outside a Git checkout."""
    try:
        result = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    names = ("torch", "timm", "determined", "nvidia-dali-cuda130", "hotcoco")
    return {name: metadata.version(name) for name in names}


def device() -> str:
    """Return the name of this machine's GPU, or its CPU's if it has none."""
    import torch  # here, since it takes seconds and not all commands need it

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.processor() or platform.machine()})"


def machine() -> str:
    """Return this machine's device and Python version."""
    return f"{device()}, Python {platform.python_version()}"
