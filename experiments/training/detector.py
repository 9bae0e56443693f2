"""Builds the detector that the hyperparameters describe, with its initial weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.settings.hparams import HParamError, HParams
from model import EfficientDet, build_detector, detector_config, load_weights


def detector_overrides(hparams: HParams) -> dict[str, Any]:
    """The hyperparameters' changes to the named configuration, as `build_detector` takes them."""
    chosen: dict[str, Any] = {
        "norm_momentum": hparams.bn_momentum,
        "norm_eps": hparams.bn_eps,
        "alpha": hparams.alpha,
        "gamma": hparams.gamma,
        "label_smoothing": hparams.smoothing or None,
        "legacy_focal": hparams.legacy_focal or None,
        "box_loss_weight": hparams.box_loss_weight,
        "soft_nms": hparams.soft_nms or None,
        "interpolation": hparams.interpolation,
        "mean": _three(hparams.mean),
        "std": _three(hparams.std),
    }
    config = detector_config(hparams.model)
    chosen["fill_color"] = _fill_color(hparams, chosen["mean"] or config.mean)
    if hparams.drop_path_rate is not None:
        chosen["backbone_args"] = {
            **config.backbone_args,
            "drop_path_rate": hparams.drop_path_rate,
        }
    return {name: value for name, value in chosen.items() if value is not None}


def _fill_color(hparams: HParams, mean: tuple[float, ...]) -> tuple[int, ...] | None:
    """The padding's colour as RGB in 0..255; None for the model's own."""
    color = hparams.fill_color
    if color == "mean" or (color is None and hparams.mean is not None):
        return tuple(round(255 * value) for value in mean)
    if color is None:
        return None
    values = color if isinstance(color, list) else [color]
    return tuple(values * 3 if len(values) == 1 else values)


def _three(values: list[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    return tuple(values * 3) if len(values) == 1 else tuple(values)


def random_backbone_notice(hparams: HParams) -> str | None:
    """A line to print if the backbone starts from random weights, else None."""
    if hparams.pretrained_backbone or hparams.backbone_weights or hparams.weights:
        return None
    return (
        "the backbone starts from random weights (pretrained_backbone: false, and neither "
        "backbone_weights nor weights is set)"
    )


def build_from_hparams(hparams: HParams, num_classes: int) -> EfficientDet:
    """The detector that the hyperparameters describe, with the weights that they name.

    Args:
        hparams: the trial's hyperparameters.
        num_classes: classes of the data set, used if the hyperparameters do not set them.

    Raises:
        HParamError: the model, image size or an override is invalid, or weights do not fit or could
            not be downloaded; the message says which and what to do.
        FileNotFoundError: weights are missing; the message says where to put them.
    """
    try:
        return _build(hparams, num_classes)
    except (ValueError, RuntimeError) as error:
        raise HParamError(f"the detector cannot be built: {error}") from error


def _build(hparams: HParams, num_classes: int) -> EfficientDet:
    config = detector_config(hparams.model)
    if hparams.deterministic and "bilinear" in (config.upsample_type, config.downsample_type):
        raise ValueError(
            f"{hparams.model} resamples maps bilinearly, of which CUDA's gradients vary in their "
            "last bits; choose another model or deterministic: false"
        )
    size = hparams.image_size
    if isinstance(size, int):
        size = [size, size]
    detector = build_detector(
        hparams.model,
        hparams.num_classes or num_classes,
        (size[0], size[1]) if size is not None else None,
        # A detector's checkpoint includes the backbone: no need to download that.
        pretrained_backbone=hparams.pretrained_backbone and hparams.weights is None,
        backbone_weights=Path(hparams.backbone_weights) if hparams.backbone_weights else None,
        **detector_overrides(hparams),
    )
    if hparams.weights is not None:
        load_weights(detector, Path(hparams.weights), reset_class_head=hparams.reset_class_head)
    return detector


def use_channels_last(detector: nn.Module, *, contiguous: bool) -> None:
    """Keep weights in channels_last memory, in place.

    Args:
        detector: the module.
        contiguous: leave out weights that would no longer be contiguous, since Horovod cannot send
            them. In separable convolutions all weights are both: of D0's, the stem's is left out.
    """
    if not contiguous:
        detector.to(memory_format=torch.channels_last)
        return
    for parameter in detector.parameters():
        if parameter.dim() == 4:
            converted = parameter.detach().to(memory_format=torch.channels_last)
            if converted.is_contiguous():
                parameter.data = converted
