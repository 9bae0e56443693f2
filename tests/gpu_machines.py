"""Stands in for a machine with NVIDIA GPUs: its PCI bus, and an nvidia-smi that replays output.

The rows and messages have the form that NVIDIA's drivers 535 to 580 print.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

MISMATCH = (
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95"
)
NO_MODULE = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.\n"
)
LOST = (
    "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot the system to "
    "recover this GPU"
)
UNKNOWN_FIELD = 'Field "compute_cap" is not a valid field to query.\n'


def row(
    index: int, name: str, capability: str, driver: str = "580.95.05", mig: str = "[N/A]"
) -> str:
    return f"{index}, {name}, GPU-{index}a, {driver}, {capability}, {mig}"


def program(folder: Path, name: str, script: str) -> None:
    """Write a program that the PATH of a machine has."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@dataclass
class GpuMachine:
    """Folders that take the place of /sys/bus/pci/devices and of the PATH."""

    pci: Path
    programs: Path

    def with_cards(self, count: int, *, driver: str = "nvidia", kind: str = "0x030200") -> None:
        """Add cards to the bus."""
        for number in range(len(list(self.pci.glob("*"))), 99)[:count]:
            card = self.pci / f"0000:{number:02d}:00.0"
            card.mkdir(parents=True)
            (card / "vendor").write_text("0x10de\n")
            (card / "class").write_text(f"{kind}\n")
            (card / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")

    def says(self, *rows: str, status: int = 0, stderr: str = "", seconds: float = 0) -> None:
        """Let nvidia-smi print this and exit."""
        printed = shlex.quote("\n".join(rows))
        program(
            self.programs,
            "nvidia-smi",
            f"/bin/sleep {seconds}; printf '%s\\n' {printed}; echo {shlex.quote(stderr)} >&2; "
            f"exit {status}",
        )
