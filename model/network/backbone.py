"""Backbones from timm, with or without ImageNet weights."""

from pathlib import Path

import timm
from torch import Tensor, nn

from model.config import DetectorConfig
from model.state_dicts import COUNTS, read_state_dict


def create_backbone(
    config: DetectorConfig, *, pretrained: bool = False, weights: Path | None = None
) -> nn.Module:
    """Build the backbone, which returns its feature maps from min_level up.

    Args:
        config: of the detector.
        pretrained: let timm download its ImageNet weights.
        weights: a file of those weights to load instead of a download.

    Raises:
        FileNotFoundError: there is no file at `weights`.
        RuntimeError: the download failed, or the file's weights do not fit the backbone.
    """
    if weights is not None:
        backbone = _create(config, pretrained=False)
        names = backbone.state_dict().keys()
        state = read_state_dict(weights, names, missing=_download_hint(config))
        _load(backbone, state.tensors, weights, config.backbone_name)
        return backbone
    if not pretrained:
        return _create(config, pretrained=False)
    try:
        return _create(config, pretrained=True)
    except Exception as error:
        # timm downloads through several libraries, whose errors have no common type.
        raise RuntimeError(
            f"the ImageNet weights of {config.backbone_name} could not be downloaded ("
            f"{type(error).__name__}: {error}). {_download_hint(config)}"
        ) from error


def _create(config: DetectorConfig, *, pretrained: bool) -> nn.Module:
    backbone: nn.Module = timm.create_model(
        config.backbone_name,
        features_only=True,
        out_indices=config.backbone_indices,
        pretrained=pretrained,
        **config.backbone_args,
    )
    return backbone


def _download_hint(config: DetectorConfig) -> str:
    source = timm.get_pretrained_cfg(config.backbone_name)
    if source is None or not (source.hf_hub_id or source.url):
        return f"timm publishes no weights for {config.backbone_name}."
    if source.hf_hub_id:
        file = source.hf_hub_filename or "model.safetensors"
        url = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/{file}"
    else:
        url = source.url
    return f"Download {url} on a machine with network access and set backbone_weights to the file."


def _load(
    backbone: nn.Module, state_dict: dict[str, Tensor], path: Path, backbone_name: str
) -> None:
    # The file's classifier is not part of the backbone.
    wanted = backbone.state_dict()
    found = {key: value for key, value in state_dict.items() if key in wanted}
    missing = sorted(key for key in wanted.keys() - found.keys() if not key.endswith(COUNTS))
    if missing:
        raise RuntimeError(
            f"{path} does not contain the weights of {backbone_name}: {len(missing)} of its "
            f"{len(wanted)} tensors are missing, such as {missing[0]}"
        )
    for key, value in found.items():
        if value.shape != wanted[key].shape:
            raise RuntimeError(
                f"{path} does not fit {backbone_name}: {key} has shape {tuple(value.shape)}, not "
                f"{tuple(wanted[key].shape)}"
            )
    backbone.load_state_dict(found, strict=False)
