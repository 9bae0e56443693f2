"""State dicts from files: published checkpoints, and those of training runs."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# What training programs put around a state dict, and wrappers of modules in front of its keys.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def read_state_dict(path: Path, *, missing: str = "", prefer_ema: bool = True) -> dict[str, Tensor]:
    """Read a state dict and strip what is wrapped around it.

    Only tensors and plain containers are unpickled, so an untrusted file runs no code.

    Args:
        path: a .pth, .pt or .safetensors file.
        missing: what the error adds where there is no such file.
        prefer_ema: take the averaged weights where the file holds both.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}. {missing}".strip())
    try:
        if path.suffix == ".safetensors":
            content = load_file(path, device="cpu")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise RuntimeError(f"{path} cannot be read as a checkpoint: {error}") from error
    return _unwrap(content, path, prefer_ema)


def _unwrap(content: object, path: Path, prefer_ema: bool) -> dict[str, Tensor]:
    wrappers = (*_EMA_WRAPPERS, *_WRAPPERS) if prefer_ema else (*_WRAPPERS, *_EMA_WRAPPERS)
    while isinstance(content, Mapping):
        inner = next(
            (content[key] for key in wrappers if isinstance(content.get(key), Mapping)), None
        )
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise RuntimeError(f"{path} holds no state dict")
    state_dict = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    while True:
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in state_dict)), None)
        if prefix is None:
            return state_dict
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
