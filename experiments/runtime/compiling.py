"""Finds out whether torch.compile works here."""

import torch
from torch import Tensor


def why_not_compiled(device: torch.device) -> str | None:
    """Return why torch.compile cannot make code for a device, or None if it can.

    It is tried: the compiler of C, Python's headers and Triton must all be there.
    """
    try:
        torch.compile(_increased)(torch.zeros(8, device=device))
    except Exception as error:  # its type depends on what is missing
        return str(error).strip().splitlines()[0].rstrip(".")
    return None


def _increased(x: Tensor) -> Tensor:
    return x + 1
