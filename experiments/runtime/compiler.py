"""Finds out whether torch's compiler works here, and leaves it out until something is compiled.

Importing torch._dynamo takes as long as importing torch. timm and torchvision import it for
functions that are not called here, and torch's optimizers to keep it out of their methods. This
uses undocumented parts of torch 2.14.
"""

import functools
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

_COMPILER = "torch._dynamo"
_TENSORS = "torch.distributed.tensor"


def postpone_compiler() -> None:
    """Import timm and torchvision, and prepare torch's optimizers, without the compiler.

    torch.compile imports it as ever. To be called before anything else imports timm.
    """
    if _COMPILER in sys.modules:
        return
    _prepare_compile(_import_timm())
    _prepare_optimizers()


def _import_timm() -> dict[str, Any]:
    """Return the settings of the compiler that timm changes."""
    compiler, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    compiler.config = SimpleNamespace()  # type: ignore[attr-defined]
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {each.__name__: each for each in (compiler, utils)}
    sys.modules.update(stand_ins)
    # Imports the compiler's parts too. timm does without: only Muon handles such tensors, if any.
    tensors = sys.modules.setdefault(_TENSORS, None)  # type: ignore[arg-type]
    try:
        # The second does what the first does, but not before the function is called.
        with mock.patch.object(torch.compiler, "disable", torch._disable_dynamo):
            for name in ("timm", "timm.optim", "torchvision.ops"):
                importlib.import_module(name)
    finally:
        for name in stand_ins:
            del sys.modules[name]
        if tensors is None:
            del sys.modules[_TENSORS]
    return vars(compiler.config)


def _is_compile_supported(device_type: str) -> Any:
    return importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device_type)


def _prepare_compile(settings: dict[str, Any]) -> None:
    """Let torch.compile change the compiler's settings as timm would have."""
    plain = torch.compile

    @functools.wraps(plain)
    def compile_(*arguments: Any, **options: Any) -> Any:
        if _COMPILER not in sys.modules:
            config = importlib.import_module(_COMPILER).config
            for name, value in settings.items():
                setattr(config, name, value)
        return plain(*arguments, **options)

    torch.compile = compile_


def _prepare_optimizers() -> None:
    """Remove what keeps the compiler out of methods that nothing here compiles."""
    base = torch.optim.Optimizer
    for method in (base.add_param_group, base.zero_grad, base.state_dict, base.load_state_dict):
        plain = getattr(method, "__wrapped__")  # noqa: B009 # the type has no such attribute
        plain.__dynamo_disable = plain
    for optimizer in base.__subclasses__():
        step = getattr(optimizer.step, "__wrapped__", None)
        if step is not None and optimizer.__module__.startswith("torch.optim."):
            optimizer.step = torch.no_grad()(step)  # type: ignore[method-assign]


def why_not_compiled(device: torch.device) -> str | None:
    """Return why torch.compile cannot make code for a device, or None if it can.

    It is tried: the compiler of C, Python's headers and Triton must all be there.
    """
    try:
        torch.compile(_increased)(torch.zeros(8, device=device))
    except Exception as error:  # its type depends on what is missing
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        return first_line or type(error).__name__
    return None


def _increased(x: Tensor) -> Tensor:
    return x + 1
