"""Loading a detector's weights from files."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.config import DetectorConfig
from model.network.detector import EfficientDet
from model.state_dicts import read_state_dict

# Constants that other training programs save together with the weights.
_NOT_WEIGHTS = ("anchors.boxes",)


def load_weights(
    model: EfficientDet, path: Path, *, reset_class_head: bool = False, prefer_ema: bool = True
) -> None:
    """Load a checkpoint into the detector; every tensor of the detector must be in it.

    Args:
        model: the detector; its weights do not change if loading fails.
        path: a .pth, .pt or .safetensors file with a state dict, bare or wrapped (state_dict,
            state_dict_ema, keys that begin with `module.` or `model.`).
        reset_class_head: keep the initial class head if the file's is for another number of
            classes.
        prefer_ema: take the averaged weights if the file has both.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
        RuntimeError: the file cannot be read, or does not fit the detector.
    """
    config: DetectorConfig = model.config
    missing = (
        f"Download the published weights of {config.name}, {config.url}, on a machine with "
        f"network access and put the file at {path}."
        if config.url
        else f"No weights are published for {config.name}: use a checkpoint of your own."
    )
    found = read_state_dict(path, missing=missing, prefer_ema=prefer_ema)
    wanted = model.state_dict()
    found = {key: value for key, value in found.items() if key not in _NOT_WEIGHTS}
    # Checkpoints that were converted from TensorFlow have no count of batches.
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


def _check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Report in a line or two how a checkpoint differs; load_state_dict would list every tensor."""
    problems = []
    groups = {
        "missing tensors": sorted(wanted.keys() - found.keys()),
        "unknown tensors": sorted(found.keys() - wanted.keys()),
        "tensors of another shape": sorted(
            key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape
        ),
    }
    for what, keys in groups.items():
        if keys:
            example = keys[0]
            if what == "tensors of another shape":
                shapes = f"{tuple(found[example].shape)}, not {tuple(wanted[example].shape)}"
                example = f"{example}: {shapes}"
            problems.append(f"{len(keys)} {what} (such as {example})")
    if problems:
        raise RuntimeError(f"{path} does not fit {name}: " + "; ".join(problems))
