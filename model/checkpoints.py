"""Weights from files: published checkpoints, and those of training runs."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from model.detector import EfficientDet

# What training programs put around a state dict, and wrappers of modules in front of its keys.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")
# Constants that a training wrapper keeps beside its model.
_NOT_WEIGHTS = ("anchors.boxes",)


def load_weights(
    model: "EfficientDet", path: Path, *, reset_class_head: bool = False, prefer_ema: bool = True
) -> None:
    """Load a checkpoint into the detector; every tensor of the detector must be in it.

    Args:
        model: the detector; on an error its weights are as they were.
        path: a .pth, .pt or .safetensors file with a state dict, bare or wrapped (state_dict,
            state_dict_ema, a `module.` or `model.` in front of the keys).
        reset_class_head: leave the class head as it was initialised, where the file's is for
            another number of classes.
        prefer_ema: take the averaged weights where the file holds both.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
        RuntimeError: the file cannot be read, or does not fit the detector.
    """
    config = model.config
    missing = (
        f"The published weights of {config.name} are {config.url}: fetch that file where there is "
        f"a network and put it at {path}."
        if config.url
        else f"No weights are published for {config.name}: give a checkpoint of your own."
    )
    found = read_state_dict(path, missing=missing, prefer_ema=prefer_ema)
    wanted = model.state_dict()
    found = {key: value for key, value in found.items() if key not in _NOT_WEIGHTS}
    # Checkpoints that were converted from TensorFlow do not count batches.
    for key in wanted.keys() - found.keys():
        if key.endswith("num_batches_tracked"):
            found[key] = wanted[key]

    bias = next(key for key in wanted if key.startswith("class_net.predict.") and "bias" in key)
    if bias in found and found[bias].shape != wanted[bias].shape:
        if not reset_class_head:
            classes = found[bias].numel() / config.num_anchors
            raise RuntimeError(
                f"{path} is for {classes:g} classes, the detector for {config.num_classes}. Build "
                f"it with num_classes={classes:g}, or pass reset_class_head=True to load all but "
                "the class head, which then starts untrained"
            )
        for key in wanted:
            if key.startswith("class_net."):
                found[key] = wanted[key]
    _check_fit(found, wanted, path, config.name)
    model.load_state_dict(found, strict=True)


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


def _check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Say in a line or two how a checkpoint differs; load_state_dict would list every tensor."""
    problems = []
    groups = {
        "are missing": sorted(wanted.keys() - found.keys()),
        "are not the detector's": sorted(found.keys() - wanted.keys()),
        "have another shape": sorted(
            key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape
        ),
    }
    for what, keys in groups.items():
        if keys:
            example = keys[0]
            if what == "have another shape":
                shapes = f"{tuple(found[example].shape)}, not {tuple(wanted[example].shape)}"
                example = f"{example}: {shapes}"
            problems.append(f"{len(keys)} tensors {what} (the first: {example})")
    if problems:
        raise RuntimeError(f"{path} does not fit {name}: " + "; ".join(problems))
