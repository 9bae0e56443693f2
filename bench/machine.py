"""The machine, package versions and commit of a benchmark."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "nvidia-dali-cuda130",
    "hotcoco",
    "pycocotools",
    "effdet",
)
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

# A higher load average before the benchmark means that the machine is in use.
_BUSY_LOAD = 0.5


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, GPU and load average; no host name."""
    return {
        "processor": _search(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_search(r"^MemTotal:\s+(\d+)", "/proc/meminfo") or 0) / 2**20, 1),
        "gpu": _gpu(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
    }


def is_busy(machine: dict[str, Any]) -> bool:
    """Return whether something else was using the machine when the benchmark started."""
    return bool(machine["load_before"] > _BUSY_LOAD)


def machine_name(machine: dict[str, Any]) -> str:
    """Return a short name for files, such as nvidia-h200 or cpu-2-cores."""
    if machine["gpu"]:
        return re.sub(r"[^a-z0-9]+", "-", machine["gpu"]["name"].lower()).strip("-")
    return f"cpu-{machine['cores']}-cores"


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def describe_commit() -> dict[str, Any]:
    """Return the commit and whether there are changes to it; empty outside a Git checkout."""
    try:
        revision = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"revision": revision, "changed": changed}


def allocator_settings() -> dict[str, str]:
    """Return glibc's settings for returning memory to the system."""
    return {name: os.environ[name] for name in _MALLOC if name in os.environ}


def keep_freed_memory() -> None:
    """Make child processes keep freed memory, unless the allocator is configured already.

    Training steps on a CPU allocate the same large blocks again and again, so this speeds up all
    contenders.
    """
    for name in _MALLOC:
        os.environ.setdefault(name, str(32 * 2**30))


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(_ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _search(pattern: str, file: str) -> str | None:
    match = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    return match[1].strip() if match else None
