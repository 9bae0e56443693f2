"""The steps that are counted."""

from dataclasses import dataclass
from typing import Any

STAGES = ("targets", "forward", "loss", "backward", "update", "other")


@dataclass(frozen=True)
class StepSettings:
    """A step to count.

    Attributes:
        batch_size: Images of a rank.
        amp_dtype: float16 or bfloat16.
        sync_bn: Synchronize batch norm, on several ranks.
        compiled: Compile target assignment and loss, as a GPU does by default.
        model: Name of the detector.
        image_size: Height and width of its input, pixels.
        hparams: Further hyperparameters that differ from their defaults.
    """

    batch_size: int
    amp_dtype: str
    sync_bn: bool
    compiled: bool = False
    model: str = "efficientdet_d0"
    image_size: int = 512
    hparams: tuple[tuple[str, Any], ...] = ()


STEPS = [
    StepSettings(batch_size, dtype, sync_bn)
    for batch_size in (16, 128)
    for dtype in ("float16", "bfloat16")
    for sync_bn in (False, True)
]
STEPS += [StepSettings(size, "bfloat16", sync_bn=False, compiled=True) for size in (16, 128)]
