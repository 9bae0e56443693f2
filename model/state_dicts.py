"""Reading state dicts from files: published checkpoints, and those of training runs."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Keys under which training programs save a state dict, and prefixes that modules' wrappers add.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def read_state_dict(path: Path, *, missing: str = "", prefer_ema: bool = True) -> dict[str, Tensor]:
    """Read a state dict without its wrappers and prefixes.

    Only tensors and plain containers are unpickled, so that an untrusted file cannot run code.

    Args:
        path: a .pth, .pt or .safetensors file.
        missing: added to the error message if there is no such file.
        prefer_ema: take the averaged weights if the file has both.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is damaged, or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. {missing}".strip())
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
        raise RuntimeError(f"{path} has no state dict")
    state_dict = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    while True:
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in state_dict)), None)
        if prefix is None:
            return state_dict
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
