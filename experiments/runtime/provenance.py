"""Where results come from: the code's commit, the versions it ran with, the machine."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """The commit of the code, with -dirty if it was changed since; None outside a git checkout."""
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
    """The versions of the packages that results depend on."""
    names = ("torch", "timm", "determined", "nvidia-dali-cuda130", "hotcoco")
    return {name: metadata.version(name) for name in names}


def device() -> str:
    """The name of this machine's GPU, or its processor's kind where it has none."""
    import torch  # here, so that commands that only want the commit start at once

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.processor() or platform.machine()})"


def machine() -> str:
    """This machine's device and Python."""
    return f"{device()}, Python {platform.python_version()}"
