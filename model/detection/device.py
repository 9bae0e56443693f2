"""How the detector's code depends on the device."""

import torch
from torch import Tensor


def runs_eagerly_on_cpu(tensor: Tensor) -> bool:
    """Whether operations on a tensor run one by one on the CPU.

    Only there may a tensor's values decide what runs next: reading a value from a GPU makes the CPU
    wait for it, and in a compiled graph no shape may depend on a value.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
