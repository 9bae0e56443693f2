"""What changes the last bits of weights besides a run's data and other settings.

It is resolved on the run's machines. Each checkpoint keeps it, so that a run which continues from
one can say what has changed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cocodata.files import write_atomically

NUMERICS = "numerics.json"


@dataclass(frozen=True)
class Numerics:
    """What a run computes with."""

    device: str
    """Kind of the device that trains: cpu or cuda."""
    precision: str
    """Of the forward pass: float32, bfloat16 or float16."""
    decoder: str
    """Of the training images, in words."""
    compile: bool
    """Whether model and loss are compiled together."""
    deterministic: bool
    """Whether kernels with a varying order of sums are excluded."""
    sync_bn_with_horovod: bool
    """Whether Horovod adds up the statistics of batch norm, in an order of its own."""
    compile_loss: bool = False
    """Whether target assignment and loss are compiled, and the model is not."""


def write_numerics(folder: Path, numerics: Numerics) -> None:
    """Add the file to a checkpoint."""
    write_atomically(folder / NUMERICS, json.dumps(asdict(numerics), indent=1))


def read_numerics(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says; nothing if it is from before there was such a file."""
    file = folder / NUMERICS
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def changes(before: Mapping[str, Any], now: Numerics) -> list[str]:
    """Say what is different now; what a checkpoint does not say is left out."""
    return [
        f"{name}: {before[name]} -> {value}"
        for name, value in asdict(now).items()
        if name in before and before[name] != value
    ]
