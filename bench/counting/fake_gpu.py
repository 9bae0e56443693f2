"""A device named cuda on any machine: tensors on it have a shape and a layout, but no values."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from determined.pytorch import PyTorchTrialContext
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CUDA = torch.device("cuda", 0)
_TENSORS = [torch.Tensor, nn.Parameter, FakeTensor]


class _HostGenerator(torch.Generator):
    """A generator that is on the CPU, whatever device it is asked for."""

    def __new__(cls, device: Any = None) -> "_HostGenerator":
        del device
        return super().__new__(cls)


def _move(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """nn.Module.to for fake tensors, which cannot be exchanged in place."""
    device, _, _, layout = torch._C._nn._parse_to(*args, **kwargs)

    def moved(x: torch.Tensor) -> torch.Tensor:
        x = x if device is None else x.to(device)
        return x if layout is None or x.dim() != 4 else x.to(memory_format=layout)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(moved(parameter.detach()))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer)
    return module


@contextlib.contextmanager
def fake_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Make all tensors fake, and let a trial that is built here be on a GPU."""
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # fakes have no addresses
        mock.patch.object(PyTorchTrialContext, "_init_device", return_value=CUDA),
        mock.patch.object(nn.Module, "to", _move),
        # Autocast and GradScaler switch themselves off where there is no GPU.
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch(
            "torch.amp.grad_scaler.torch.cuda.amp.common.amp_definitely_not_available",
            return_value=False,
        ),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch("torch.cuda.is_bf16_supported", return_value=capability >= (8, 0)),
        # The average of the weights would ask the GPU itself for a generator.
        mock.patch("torch.Generator", _HostGenerator),
        # A GPU's optimizers and clipping handle all tensors of such types together.
        mock.patch("torch.optim.optimizer._foreach_supported_types", _TENSORS),
        mock.patch("torch.utils._foreach_utils._foreach_supported_types", _TENSORS),
        # A copy of a fake tensor would have a copy of its mode.
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
        # The synchronized batch norms are made with tensors on a device without memory.
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield
