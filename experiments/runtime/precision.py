"""The precision that a run's forward pass computes in, the same on all ranks."""

import torch

from experiments.runtime.communication import Communicator
from experiments.runtime.devices import has_bfloat16
from experiments.settings.hparams import HParams


def resolve_precision(
    hparams: HParams, device: torch.device, ranks: Communicator, before: str | None = None
) -> str:
    """Return float32, bfloat16 or float16; all ranks must call this.

    Args:
        hparams: The run's hyperparameters.
        device: The device that this rank trains on.
        ranks: All ranks; with `amp_dtype: auto`, one GPU without bfloat16 decides for all.
        before: The precision of the checkpoint that the run continues from, which it keeps if it
            can; None for a new run.
    """
    if not hparams.amp:
        return "float32"
    if hparams.amp_dtype != "auto":
        return hparams.amp_dtype
    lacking = ranks.all_reduce_sum(torch.tensor([float(not has_bfloat16(device))]))
    if before == "float16" or float(lacking) > 0:
        return "float16"
    return "bfloat16"
