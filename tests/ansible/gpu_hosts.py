"""Stand-ins for hosts with NVIDIA GPUs: a nvidia-smi that replays real ones, and a PCI bus.

Formats and values are those of nvidia-smi 470 to 590 on Linux, as people have published them:

- Rows of `--query-gpu` (mig.mode.current is `[N/A]` on GPUs without MIG, fabric.state is `N/A` on
  GPUs outside an NVLink fabric): github.com/utkuozdemir/nvidia_gpu_exporter, internal/captures.
- A lost GPU is one line on stderr; the others are listed, their indices keep the gap, and the exit
  status stays 0. One that is lost later shows `[GPU is lost]` in the fields that ask the device.
- `Driver/library version mismatch` exits with 18 and is printed on stdout, as most errors are; the
  other exit statuses are those of nvidia-smi's manual (section RETURN VALUE).
- A card that the driver no longer supports is on the bus only: siderolabs/talos issue 8764.
- On an A100 fabric.state is `N/A` even where a fabric manager is needed and runs:
  bottlerocket-os/bottlerocket pull request 3873.
"""

from __future__ import annotations

import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VGA, ACCELERATOR, AUDIO, BRIDGE = "0x030000", "0x030200", "0x040300", "0x068000"
NVIDIA = "0x10de"


@dataclass(frozen=True)
class Card:
    """A device on the PCI bus."""

    device: str
    kind: str = VGA
    vendor: str = NVIDIA


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi shows it; a field may hold the text of an error."""

    name: str
    capability: str
    memory_mib: int | str
    index: int = 0
    mig: str = "[N/A]"
    persistence: str = "Enabled"
    fabric: str = "N/A"
    instances: tuple[str, ...] = ()

    @property
    def uuid(self) -> str:
        """Return the UUID, the same in every run."""
        return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.name} {self.index}')}"

    def instance_uuid(self, number: int) -> str:
        """Return the UUID of a MIG instance."""
        return f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.uuid} {number}')}"

    def fields(self, driver: str) -> dict[str, tuple[str, str]]:
        """Return field -> value and unit, as nvidia-smi names and prints them."""
        unit = " MiB" if isinstance(self.memory_mib, int) else ""
        return {
            "index": (str(self.index), ""),
            "uuid": (self.uuid, ""),
            "gpu_uuid": (self.uuid, ""),
            "name": (self.name, ""),
            "gpu_name": (self.name, ""),
            "driver_version": (driver, ""),
            "compute_cap": (self.capability, ""),
            "memory.total": (str(self.memory_mib), unit),
            "mig.mode.current": (self.mig, ""),
            "persistence_mode": (self.persistence, ""),
            "fabric.state": (self.fabric, ""),
        }

    def record(self) -> dict[str, Any]:
        """Return this GPU as host_probe records it; None stands for what nvidia-smi cannot say."""
        return {
            "index": self.index,
            "uuid": self.uuid,
            "name": self.name,
            "capability": self.capability,
            "memory_mib": self.memory_mib if isinstance(self.memory_mib, int) else None,
            "mig": self.mig == "Enabled",
            "persistence": self.persistence == "Enabled",
            "fabric": None if self.fabric == "N/A" or self.fabric[0] == "[" else self.fabric,
        }


@dataclass(frozen=True)
class Scenario:
    """A kind of host: its cards, and what its nvidia-smi does."""

    cards: tuple[Card, ...]
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = "580.95.05"
    """None: nvidia-smi is not installed."""
    stdout: str = ""
    stderr: str = ""
    status: int = 0
    seconds: float = 0.0
    unknown_fields: tuple[str, ...] = ()
    """Fields that this driver's nvidia-smi does not have."""

    @property
    def kinds(self) -> list[str]:
        """Return the PCI device number of each NVIDIA display device on the bus."""
        return [
            card.device
            for card in self.cards
            if card.vendor == NVIDIA and card.kind.startswith("0x03")
        ]

    @property
    def on_bus(self) -> int:
        """Return how many NVIDIA display devices are on the PCI bus."""
        return len(self.kinds)

    def install(self, folder: Path, seconds: float | None = None) -> None:
        """Write `folder`/bin/nvidia-smi and the devices of `folder`/pci.

        Args:
            folder: Where to; the folder bin goes to the PATH, pci is to be /sys/bus/pci/devices.
            seconds: How long nvidia-smi takes, in place of the scenario's time.
        """
        tools = folder / "bin"
        tools.mkdir(parents=True, exist_ok=True)
        if self.driver is not None:
            script = tools / "nvidia-smi"
            script.write_text(self._script(self.seconds if seconds is None else seconds))
            script.chmod(0o755)
        bus = folder / "pci"
        bus.mkdir(parents=True, exist_ok=True)
        for number, card in enumerate(self.cards, 1):
            device = bus / f"0000:{number:02x}:00.0"
            device.mkdir()
            (device / "class").write_text(f"{card.kind}\n")
            (device / "vendor").write_text(f"{card.vendor}\n")
            (device / "device").write_text(f"{card.device}\n")

    def record(self) -> dict[str, Any]:
        """Return what host_probe makes of this host (its module says what the entries mean)."""
        failed = self.driver is None or self.status != 0
        error = (self.stderr or self.stdout).partition("\n")[0]
        if self.driver is None:
            error = "nvidia-smi is not installed" if self.on_bus else ""
        rows = () if failed else self.gpus
        return {
            "state": ("failed" if failed else "working") if self.on_bus else "absent",
            "error": error,
            "on_bus": self.on_bus,
            "kinds": self.kinds,
            "loaded_driver": None,
            "visible": len(rows),
            "names": [gpu.name for gpu in rows],
            "driver": self.driver if rows else None,
            "devices": [gpu.record() for gpu in rows],
        }

    def _script(self, seconds: float) -> str:
        rows = "\n".join(self._row(gpu) for gpu in self.gpus)
        names = " ".join(f"gpu{gpu.index}" for gpu in self.gpus)
        return _SCRIPT.format(
            seconds=seconds,
            stdout=shlex.quote(self.stdout),
            stderr=shlex.quote(self.stderr),
            status=self.status,
            rows=rows,
            names=names,
            listing=shlex.quote(self._listing()),
        )

    def _row(self, gpu: Gpu) -> str:
        cases = [
            f"    {name}) value={shlex.quote(value)} unit={shlex.quote(unit)} ;;"
            for name, (value, unit) in gpu.fields(self.driver or "").items()
            if name not in self.unknown_fields
        ]
        return "\n".join(
            [f"gpu{gpu.index}() {{", "  case $1 in", *cases, "    *) return 1 ;;", "  esac", "}"]
        )

    def _listing(self) -> str:
        lines = []
        for gpu in self.gpus:
            lines.append(f"GPU {gpu.index}: {gpu.name} (UUID: {gpu.uuid})")
            lines += [
                f"  MIG {profile:<11} Device {number:>2}: (UUID: {gpu.instance_uuid(number)})"
                for number, profile in enumerate(gpu.instances)
            ]
        return "\n".join(lines)


_SCRIPT = r"""#!/bin/sh
# A stand-in that replays nvidia-smi; tests/ansible/gpu_hosts.py writes it.
sleep {seconds}
stdout={stdout} stderr={stderr} listing={listing}
{rows}
[ -z "$stderr" ] || echo "$stderr" >&2
[ -z "$stdout" ] || echo "$stdout"
[ {status} -eq 0 ] || exit {status}
query='' format='' action=''
while [ $# -gt 0 ]; do
  case $1 in
    --query-gpu=*) query=${{1#*=}} ;;
    --query-gpu) query=$2; shift ;;
    --format=*) format=${{1#*=}} ;;
    -L | --list-gpus) action=list ;;
    -pm | --persistence-mode=*) action=persistence ;;
  esac
  shift
done
case $action in
  list)
    [ -z "$listing" ] || echo "$listing"
    exit 0
    ;;
  persistence) echo "All done."; exit 0 ;;
esac
for name in {names}; do
  line=''
  for field in $(echo "$query" | tr , ' '); do
    if ! "$name" "$field"; then
      echo "Field \"$field\" is not a valid field to query."
      exit 2
    fi
    case $format in *nounits*) unit='' ;; esac
    line="$line, $value$unit"
  done
  echo "${{line#, }}"
done
"""


def _several(count: int, gpu: Gpu, skip: tuple[int, ...] = ()) -> tuple[Gpu, ...]:
    fields = {**gpu.__dict__}
    fields.pop("index")
    return tuple(Gpu(index=index, **fields) for index in range(count) if index not in skip)


_RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564)
_RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "8.6", 24576)
_A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 81920, mig="Disabled", persistence="Disabled")
_A100_MIG = Gpu(
    "NVIDIA A100-SXM4-80GB",
    "8.0",
    81920,
    mig="Enabled",
    instances=("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"),
)
_H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 81559, mig="Disabled", fabric="Completed")
_H100_UNREGISTERED = Gpu(
    "NVIDIA H100 80GB HBM3", "9.0", 81559, mig="Disabled", fabric="In Progress"
)
_GEFORCE = (Card("0x2684"), Card("0x22ba", AUDIO))
_HGX_H100 = (Card("0x2330", ACCELERATOR),) * 8 + (Card("0x22a3", BRIDGE),) * 4
_HGX_A100 = (Card("0x20b2", ACCELERATOR),) * 8 + (Card("0x1af1", BRIDGE),) * 6
_NO_DRIVER_ANSWERS = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.\n"
)
_MISMATCH = (
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105"
)
_LOST = "Unable to determine the device handle for GPU{index}: 0000:{bus:02x}:00.0: Unknown Error"

SCENARIOS: dict[str, Scenario] = {
    "processors only": Scenario(cards=(Card("0x1111", vendor="0x1234"),), driver=None),
    "RTX 4090 x2": Scenario(cards=_GEFORCE * 2, gpus=_several(2, _RTX_4090)),
    # Without persistence mode the driver initializes each GPU anew.
    "A100 x8, slow": Scenario(cards=_HGX_A100, gpus=_several(8, _A100), seconds=30.0),
    "V100 x4": Scenario(
        cards=(Card("0x1db5", ACCELERATOR),) * 4,
        gpus=_several(4, Gpu("Tesla V100-SXM2-32GB", "7.0", 32768)),
    ),
    "driver 535": Scenario(cards=(Card("0x2204"),), gpus=(_RTX_3090,), driver="535.247.01"),
    # nvidia-smi knows compute_cap from 510 on.
    "driver 470": Scenario(
        cards=(Card("0x2204"),),
        gpus=(_RTX_3090,),
        driver="470.256.02",
        unknown_fields=("compute_cap", "fabric.state"),
    ),
    "driver upgraded without a reboot": Scenario(cards=_GEFORCE * 2, stdout=_MISMATCH, status=18),
    "driver not loaded": Scenario(cards=_GEFORCE * 2, stdout=_NO_DRIVER_ANSWERS, status=9),
    "no driver": Scenario(cards=_GEFORCE * 2, driver=None),
    # Blackwell with the proprietary flavour of the kernel module, or too little PCI memory.
    "driver refuses its GPU": Scenario(
        cards=(Card("0x2b85"),), stdout="No devices were found", status=6
    ),
    "MIG": Scenario(cards=(Card("0x20b2", ACCELERATOR),), gpus=(_A100_MIG,)),
    "MIG on the second of two": Scenario(
        cards=(Card("0x20b2", ACCELERATOR),) * 2,
        gpus=(_several(2, _A100)[0], _several(2, _A100_MIG)[1]),
    ),
    "one GPU lost": Scenario(
        cards=(Card("0x2204"),) * 4,
        gpus=_several(4, _RTX_3090, skip=(1,)),
        stderr=_LOST.format(index=1, bus=2),
    ),
    "one GPU lost after the driver found it": Scenario(
        cards=(Card("0x2204"),) * 2,
        gpus=(
            _RTX_3090,
            Gpu(
                _RTX_3090.name,
                "8.6",
                "[GPU is lost]",
                index=1,
                mig="[GPU is lost]",
                persistence="[GPU is lost]",
                fabric="[GPU is lost]",
            ),
        ),
    ),
    "HGX H100": Scenario(cards=_HGX_H100, gpus=_several(8, _H100)),
    "HGX H100 without fabric manager": Scenario(
        cards=_HGX_H100, gpus=_several(8, _H100_UNREGISTERED)
    ),
    # Driver 580 leaves a Kepler card alone: it is on the bus, and nvidia-smi does not show it.
    "RTX 4090 and GT 710": Scenario(
        cards=(*_GEFORCE, Card("0x128b"), Card("0x0e0f", AUDIO)), gpus=(_RTX_4090,)
    ),
    "RTX 4090 and GT 1030": Scenario(
        cards=(*_GEFORCE, Card("0x1d01"), Card("0x0fb8", AUDIO)),
        gpus=(_RTX_4090, Gpu("NVIDIA GeForce GT 1030", "6.1", 2048, index=1)),
    ),
    "A100 and T400": Scenario(
        cards=(Card("0x20b2", ACCELERATOR), Card("0x1ff2")),
        gpus=(_A100, Gpu("NVIDIA T400 4GB", "7.5", 4096, index=1)),
    ),
}
