"""What a benchmark ran on: machine, versions, commit."""

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

# Load that this many cores' worth of other work makes is called a busy machine.
_BUSY = 0.5


def machine() -> dict[str, Any]:
    """Processor, memory, GPU, and how busy all of it was before; no name of the machine."""
    return {
        "processor": _found(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_found(r"^MemTotal:\s+(\d+)", "/proc/meminfo") or 0) / 2**20, 1),
        "gpu": _gpu(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
    }


def busy(described: dict[str, Any]) -> bool:
    """Whether others were using the machine when the benchmark began."""
    return bool(described["load_before"] > _BUSY)


def machine_kind(described: dict[str, Any]) -> str:
    """A short name for files: nvidia-h200, or cpu-2-cores."""
    if described["gpu"]:
        return re.sub(r"[^a-z0-9]+", "-", described["gpu"]["name"].lower()).strip("-")
    return f"cpu-{described['cores']}-cores"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def commit() -> dict[str, Any]:
    """The commit, and whether files differ from it; empty outside a Git checkout."""
    try:
        revision = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"revision": revision, "changed": changed}


def allocator() -> dict[str, str]:
    """Glibc's settings that decide how often a step asks the system for memory."""
    return {name: os.environ[name] for name in _MALLOC if name in os.environ}


def keep_large_blocks() -> None:
    """Let processes started from here keep memory that they freed, if nothing else is set.

    A training step on a CPU asks for the same large blocks again and again; all contenders gain.
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


def _found(pattern: str, file: str) -> str | None:
    match = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    return match[1].strip() if match else None
