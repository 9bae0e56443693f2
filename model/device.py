"""The one question that the detector asks about the device it runs on."""

import torch
from torch import Tensor


def runs_eagerly_on_cpu(tensor: Tensor) -> bool:
    """Whether operations on a tensor run one by one on the processor.

    There a value may decide what is done next. On a GPU reading a value makes the processor wait
    for it, and in a compiled graph no shape may depend on one.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
