"""The NVIDIA GPUs of a machine, and which of them torch and DALI can use; needs no torch.

A GPU that fails and one that is absent are different: a failure is an error with its cause, so that
nothing trains on processors because a driver was upgraded or nvidia-smi is slow.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# For CUDA 13, which the installed torch and DALI are built for (CUDA's release notes, table 3).
MIN_DRIVER_VERSION = 580
# What the pinned torch is compiled for: torch.cuda.get_arch_list(). DALI, nvJPEG, NCCL and the task
# image's Horovod have code for all of its GPUs (docs/gpu-hosts.md).
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
PCI_DEVICES = Path("/sys/bus/pci/devices")
# With 8 GPUs and without persistence mode, nvidia-smi takes up to half a minute.
NVIDIA_SMI_SECONDS = 60.0
_NVIDIA = "0x10de"
_FIELDS = ("index", "name", "uuid", "driver_version", "compute_cap", "mig.mode.current")
# Drivers before 510 do not know compute_cap, and a query with an unknown field fails.
_OLD_FIELDS = _FIELDS[:4]


class DeviceError(ValueError):
    """This machine's GPUs cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi describes it; a value that it does not know is None."""

    index: int
    name: str
    uuid: str
    driver: str | None = None
    capability: tuple[int, int] | None = None  # compute capability, such as (8, 6)
    mig: bool = False  # is divided into instances

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def runs_on(capability: tuple[int, int], architectures: Iterable[str] = ARCHITECTURES) -> bool:
    """Return whether a GPU runs code that is compiled for these architectures.

    Args:
        capability: The GPU's compute capability.
        architectures: Names as torch.cuda.get_arch_list() gives them: sm_86 is machine code, which
            also runs on GPUs of the same major version with a higher minor one; compute_120 is PTX,
            which is compiled for any later GPU.
    """
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)(a?)", name)
        if found is None:
            continue
        built = int(found[2]), int(found[3])
        if found[4]:  # for exactly this GPU
            fits = capability == built
        elif found[1] == "compute":
            fits = capability >= built
        else:
            fits = capability[0] == built[0] and capability[1] >= built[1]
        if fits:
            return True
    return False


def unsupported(
    gpu: str, capability: tuple[int, int], architectures: Iterable[str] = ARCHITECTURES
) -> str:
    """Say that torch has no code for a GPU, and what to do."""
    return (
        f"{gpu} has compute capability {capability[0]}.{capability[1]}, for which the installed "
        f"torch has no code (it has: {', '.join(architectures)}). GPUs from Turing on work, such "
        "as T4, RTX 20xx, A100, L4 and H100; V100, P100, GTX 10xx and Titan V do not "
        "(docs/gpu-hosts.md)"
    )


def require_driver(version: str | None) -> None:
    """Check that NVIDIA's driver is new enough for CUDA 13.

    Raises:
        DeviceError: It is older.
    """
    if version is not None and int(version.partition(".")[0]) < MIN_DRIVER_VERSION:
        raise DeviceError(
            f"this machine's NVIDIA driver is {version}, but CUDA 13 needs {MIN_DRIVER_VERSION} or "
            f"newer. Install a newer driver and reboot (make cluster-up installs the one that the "
            "setting nvidia_driver_package names)"
        )


def gpus_on_bus(pci: Path = PCI_DEVICES) -> int:
    """Return how many NVIDIA GPUs are on the PCI bus and not reserved for virtual machines."""
    found = 0
    for device in pci.glob("*"):
        display = _read(device / "class").startswith("0x03")
        reserved = (device / "driver").resolve().name == "vfio-pci"
        found += display and _read(device / "vendor") == _NVIDIA and not reserved
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def find_gpus(pci: Path = PCI_DEVICES, *, seconds: float = NVIDIA_SMI_SECONDS) -> list[Gpu]:
    """Return this machine's GPUs; none if it has none.

    Raises:
        DeviceError: It has GPUs, but the driver is missing, fails or does not answer.
    """
    on_bus = gpus_on_bus(pci)
    if shutil.which("nvidia-smi") is None:
        if on_bus:
            raise DeviceError(
                f"this machine has {on_bus} NVIDIA GPU(s) on its PCI bus, but no driver: "
                f"nvidia-smi is missing. Install NVIDIA's driver {MIN_DRIVER_VERSION} or newer and "
                "reboot"
            )
        return []
    listed = _query(_FIELDS, seconds)
    if listed.returncode == 2 or "not a valid field" in listed.stdout:
        listed = _query(_OLD_FIELDS, seconds)
    if listed.returncode == 0:
        return [_parse(line) for line in listed.stdout.splitlines() if line.count(", ") >= 3]
    if not on_bus:
        return []  # what is left of a driver
    said = " ".join((listed.stdout.strip() or listed.stderr.strip()).split())[:300]
    raise DeviceError(
        f"this machine has {on_bus} NVIDIA GPU(s) on its PCI bus, but nvidia-smi fails (exit "
        f"status {listed.returncode}): {said.rstrip('.')}. {_remedy(said)}"
    )


def silent_gpus(found: Sequence[Gpu], pci: Path = PCI_DEVICES) -> str | None:
    """Say how many GPUs on the bus nvidia-smi does not list; None if it lists all."""
    on_bus = gpus_on_bus(pci)
    if on_bus <= len(found):
        return None
    return (
        f"nvidia-smi lists {len(found)} of {on_bus} NVIDIA GPU(s) on the PCI bus: the driver does "
        "not support the others, or they have failed (sudo dmesg | grep NVRM says which)"
    )


def _query(fields: Iterable[str], seconds: float) -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"nvidia-smi has not answered for {seconds:.0f} s. Without persistence mode it starts "
            "every GPU anew: enable it (sudo systemctl enable --now nvidia-persistenced, or sudo "
            "nvidia-smi -pm 1). If it still does not answer, a GPU hangs: sudo dmesg | grep NVRM "
            "names it, and only a reboot brings it back"
        ) from None


def _remedy(said: str) -> str:
    if "mismatch" in said:
        return "The driver was upgraded while it was loaded: reboot"
    if "lost" in said or "device handle" in said:
        return "A GPU has dropped off the bus: sudo dmesg | grep NVRM says why; reboot"
    if "communicate" in said:
        return (
            "The driver's kernel module is not loaded: sudo modprobe nvidia says why; after an "
            "upgrade of the kernel, install its headers and the driver's package again, and with "
            "Secure Boot enrol the module's key"
        )
    return "sudo dmesg | grep NVRM says why"


def _parse(line: str) -> Gpu:
    """Read a row such as `0, NVIDIA L4, GPU-6b..., 580.95.05, 8.9, [N/A]`."""
    # A lost GPU has a message in brackets in place of a value.
    values = [None if cell.startswith("[") else cell for cell in line.strip().split(", ")]
    values += [None] * (len(_FIELDS) - len(values))
    index, name, uuid, driver, capability, mig = values[: len(_FIELDS)]
    major, _, minor = (capability or "").partition(".")
    return Gpu(
        index=int(index) if index is not None and index.isdigit() else -1,
        name=name or "unknown model",
        uuid=uuid or "",
        driver=driver if driver and re.match(r"\d+\.", driver) else None,
        capability=(int(major), int(minor)) if minor.isdigit() else None,
        mig=mig == "Enabled",
    )


def usable_gpus(gpus: Iterable[Gpu]) -> tuple[list[Gpu], list[str]]:
    """Return the GPUs that torch can use, and for each other one what is wrong with it.

    Raises:
        DeviceError: The driver is too old for all of them.
    """
    usable, problems = [], []
    for gpu in gpus:
        require_driver(gpu.driver)
        if gpu.capability is None or not gpu.uuid:
            problems.append(
                f"{gpu} does not answer the driver: sudo dmesg | grep NVRM says why; reboot"
            )
        elif not runs_on(gpu.capability):
            problems.append(unsupported(str(gpu), gpu.capability))
        else:
            usable.append(gpu)
    return usable, problems
