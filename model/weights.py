"""Loading a detector's weights from files."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from model.config import DetectorConfig, detector_config, list_detectors
from model.configurations import PUBLISHED_WEIGHTS
from model.network.detector import EfficientDet, build_detector
from model.state_dicts import COUNTS, read_state_dict

# Constants that other training programs save together with the weights.
_NOT_WEIGHTS = ("anchors.boxes", "n_averaged")
_CLASS_HEAD = "class_net."
# The only tensors whose shape depends on the number of classes.
_CLASS_PREDICTION = "class_net.predict."
_BACKBONE = "backbone."
# The part of the detector's names that a file must have to count as weights of another detector.
_SIMILAR = 0.5
_NEARLY_ALL = 0.9


def load_weights(
    model: EfficientDet, path: Path, *, reset_class_head: bool = False, prefer_ema: bool = True
) -> None:
    """Load a checkpoint into the detector; every tensor of the detector must be in it.

    Args:
        model: the detector; its weights do not change if loading fails.
        path: a file with a state dict that torch.save or safetensors wrote, under any name: bare or
            as training programs save it (timm, effdet, Lightning, DDP, torch.compile), in any
            precision. No code of the file is run.
        reset_class_head: keep the initial class head if the file's is for another number of
            classes.
        prefer_ema: take the averaged weights if the file has both.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
        RuntimeError: the file cannot be read, or does not fit the detector; the message says in a
            line what it is.
    """
    config: DetectorConfig = model.config
    missing = (
        f"Download the published weights of {config.name}, {config.url}, on a machine with "
        f"network access and put the file at {path}."
        if config.url
        else f"No weights are published for {config.name}: use a checkpoint of your own."
    )
    wanted = model.state_dict()
    state = read_state_dict(path, wanted.keys(), missing=missing, prefer_ema=prefer_ema)
    found = {key: value for key, value in state.tensors.items() if key not in _NOT_WEIGHTS}
    _check_fit(found, wanted, path, config)
    _check_origin(state.architecture, path, config)
    if not _same_classes(found, wanted, path, config, reset_class_head=reset_class_head):
        found |= {key: value for key, value in wanted.items() if key.startswith(_CLASS_HEAD)}
    _check_values(found, path)
    found |= {key: wanted[key] for key in wanted.keys() - found.keys()}  # counts alone
    model.load_state_dict(found, strict=True)


def _check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, config: DetectorConfig
) -> None:
    """Report in a line how a checkpoint differs; load_state_dict would list every tensor."""
    problems = _differences(found, wanted)
    if not problems:
        return
    names = wanted.keys() & found.keys()
    if len(names) < _SIMILAR * len(wanted):
        backbone = {key.removeprefix(_BACKBONE) for key in wanted if key.startswith(_BACKBONE)}
        if len(backbone & found.keys()) > _NEARLY_ALL * len(backbone):
            raise RuntimeError(
                f"{path} has the weights of a backbone, not of a detector: set backbone_weights to "
                "it instead of weights"
            )
    fitting = _fitting_detectors(found)
    if fitting:
        raise RuntimeError(
            f"{path} does not fit {config.name}: its tensors are those of {_one_of(fitting)}; set "
            "model to that"
        )
    if len(names) < _SIMILAR * len(wanted):
        raise RuntimeError(
            f"{path} is not an EfficientDet but another model: {len(found)} tensors, such as "
            f"{min(found)}, and {len(names)} of the {len(wanted)} of {config.name}"
        )
    raise RuntimeError(f"{path} does not fit {config.name}: " + "; ".join(problems))


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Say what differs, except for the number of classes and counts of batches."""
    missing = sorted(key for key in wanted.keys() - found.keys() if not key.endswith(COUNTS))
    shapes = [
        key
        for key in sorted(wanted.keys() & found.keys())
        if _shape(key, found[key]) != _shape(key, wanted[key])
    ]
    problems = []
    for what, keys in (
        ("missing tensors", missing),
        ("unknown tensors", sorted(found.keys() - wanted.keys())),
        ("tensors of another shape", shapes),
    ):
        if keys:
            example = keys[0]
            if keys is shapes:
                sizes = f"{tuple(found[example].shape)}, not {tuple(wanted[example].shape)}"
                example = f"{example}: {sizes}"
            problems.append(f"{len(keys)} {what} (such as {example})")
    return problems


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return shape[1:] if name.startswith(_CLASS_PREDICTION) else shape


def _fitting_detectors(found: Mapping[str, Tensor]) -> list[str]:
    """Name the detectors whose tensors these are, but for the number of classes."""
    weight = next((key for key in found if re.match(r"box_net\.predict\..*weight$", key)), None)
    if weight is None:
        return []
    fitting = []
    for name in list_detectors():
        config = detector_config(name)
        depths = (config.fpn_cell_repeats, config.box_class_repeats)
        if depths != (_depth(found, r"fpn\.cell"), _depth(found, r"box_net\.conv_rep")):
            continue
        with torch.device("meta"):
            wanted = build_detector(name).state_dict()
        if not _differences(found, wanted):
            fitting.append(name)
    return fitting


def _depth(found: Mapping[str, Tensor], prefix: str) -> int:
    matches = (re.match(rf"{prefix}\.(\d+)\.", key) for key in found)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _check_origin(architecture: str | None, path: Path, config: DetectorConfig) -> None:
    """Refuse another detector's weights of the same shapes, which would detect badly.

    Such detectors differ in padding, anchors, or the normalisation of images.
    """
    origin = {architecture} & set(list_detectors())
    origin |= {
        name for name, url in PUBLISHED_WEIGHTS.items() if PurePosixPath(url).name == path.name
    }
    if origin and config.name not in origin:
        raise RuntimeError(
            f"{path} has the weights of {_one_of(sorted(map(str, origin)))}, which have the same "
            f"shapes as those of {config.name} but detect differently; set model to that"
        )


def _same_classes(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    path: Path,
    config: DetectorConfig,
    *,
    reset_class_head: bool,
) -> bool:
    """Return whether the class heads fit.

    Raises:
        RuntimeError: they do not, and the file's was not to be left out.
    """
    bias = next(key for key in wanted if key.startswith(_CLASS_PREDICTION) and "bias" in key)
    if found[bias].shape == wanted[bias].shape:
        return True
    if not reset_class_head:
        classes = f"{found[bias].numel() / config.num_anchors:g}"
        raise RuntimeError(
            f"{path} is for {classes} classes, the detector for {config.num_classes}: set "
            f"num_classes to {classes} (--num-classes {classes} in evaluate and predict), or, to "
            "train all but the class head from it, reset_class_head to true"
        )
    return False


def _check_values(found: Mapping[str, Tensor], path: Path) -> None:
    for key, value in found.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RuntimeError(
                f"{path} has weights that are NaN or infinite, such as in {key}: the training that "
                "saved it had diverged; use an earlier checkpoint"
            )


def _one_of(names: list[str]) -> str:
    return " or ".join(names)
