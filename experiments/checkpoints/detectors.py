"""Loads the detector of a checkpoint, and describes it for detector.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from cocodata import Categories
from experiments.checkpoints.contents import DETECTOR, CheckpointError, verify_digests
from model import EfficientDet, build_detector, load_weights


def load_detector(
    path: Path,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    use_ema: bool = True,
) -> EfficientDet:
    """Load a detector from a trial's checkpoint folder or from a weights file.

    Args:
        path: A checkpoint folder of this project, or a .pth, .pt or .safetensors file.
        model: The detector's name; needed for a weights file only.
        num_classes: Number of classes of a weights file (90 if None); ignored for a folder.
        image_size: Height and width in pixels; None for that of the training, or else the model's
            default.
        use_ema: Load the EMA of the weights if there is one.

    Raises:
        CheckpointError: The checkpoint is missing or damaged, or is not of that model.
    """
    if path.is_dir():
        verify_digests(path)
        return _from_trial(path, model, image_size, use_ema)
    if model is None:
        raise CheckpointError(
            f"{path}: not a checkpoint folder of this project; for a weights file, also give its "
            "model, such as --model tf_efficientdet_d0"
        )
    detector = build_detector(model, num_classes or 90, image_size)
    try:
        load_weights(detector, path, prefer_ema=use_ema)
    except RuntimeError as error:
        raise CheckpointError(str(error)) from error
    return detector


def _from_trial(
    folder: Path, model: str | None, image_size: tuple[int, int] | None, use_ema: bool
) -> EfficientDet:
    description = json.loads((folder / DETECTOR).read_text(encoding="utf-8"))
    if model is not None and model != description["model"]:
        raise CheckpointError(
            f"{folder}: contains {description['model']}, not {model}; omit the model's name"
        )
    detector = build_detector(
        description["model"],
        description["num_classes"],
        image_size or tuple(description["image_size"]),
        **description["overrides"],
    )
    allow_checkpoint_globals()
    state = torch.load(folder / "state_dict.pth", map_location="cpu", weights_only=True)
    weights = state["models_state_dict"][0]
    ema = state["callbacks"]["position"]["ema"]
    if use_ema and ema is not None:
        weights = ema
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, "module.")
    detector.load_state_dict(weights)
    return detector


def trained_categories(path: Path) -> Categories | None:
    """Return the categories that a checkpoint folder was trained on; None for a weights file."""
    if not (path / DETECTOR).is_file():
        return None
    categories = json.loads((path / DETECTOR).read_text(encoding="utf-8"))["categories"]
    return Categories(ids=tuple(categories["ids"]), names=tuple(categories["names"]))


def detector_description(
    detector: EfficientDet, overrides: dict[str, Any], categories: Categories
) -> str:
    """Return the text of detector.json: how to rebuild a detector, and what its labels mean."""
    config, categories = detector.config, categories.of_detector
    return json.dumps(
        {
            "model": config.name,
            "num_classes": config.num_classes,
            "image_size": list(config.image_size),
            "overrides": overrides,
            "categories": {"ids": categories.ids, "names": categories.names},
        },
        indent=1,
    )


def allow_checkpoint_globals() -> None:
    """Let torch.load(weights_only=True) read the NumPy random state that Determined saves.

    Determined 0.38.1 relies on torch.load's default, which since torch 2.6 rejects these types.
    Everything else is still rejected.
    """
    torch.serialization.add_safe_globals(
        [
            np.ndarray,
            np.dtype,
            multiarray._reconstruct,
            multiarray.scalar,
            *(type(np.dtype(kind)) for kind in ("uint32", "int64", "float64", "float32")),
        ]
    )
