"""Checkpoints that can be trusted: digests beside the files, a check before any use, safe loading.

A checkpoint is a folder as Determined's trainer writes it (state_dict.pth, trial_state.pkl, ...)
plus two files of ours: detector.json says how to rebuild the detector, sha256.json lists the
SHA-256 of every other file.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from cocodata import Categories
from cocodata.files import file_digest, write_atomically
from model import EfficientDet, build_detector, load_weights

DIGESTS = "sha256.json"
DETECTOR = "detector.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of every file below the folder into its sha256.json."""
    digests = {
        file.relative_to(folder).as_posix(): file_digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != DIGESTS
    }
    write_atomically(folder / DIGESTS, json.dumps(digests, indent=1))


def verify_digests(folder: Path) -> None:
    """Check every file that was there when the checkpoint was written.

    Raises:
        CheckpointError: the folder or its digests are missing, or a file is missing or changed.
    """
    listing = folder / DIGESTS
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder; give the path of one")
    if not listing.is_file():
        raise CheckpointError(
            f"{listing}: missing, so the checkpoint was not written to its end; use an earlier one"
        )
    try:
        digests: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{listing}: damaged ({error}); use an earlier checkpoint") from error
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing from the checkpoint; use an earlier one")
        if file_digest(file) != digest:
            raise CheckpointError(
                f"{file}: its content is not what was saved (SHA-256 differs): the file is "
                "damaged; use an earlier checkpoint"
            )


def require_room(storage: Any, checkpoint: dict[str, Any]) -> None:
    """See that a checkpoint fits on the storage that it is about to be written to.

    Args:
        storage: Determined's storage manager; one that is no folder here is not looked at.
        checkpoint: what is about to be saved.

    Raises:
        CheckpointError: it would not fit.
    """
    folder = getattr(storage, "_base_path", None)
    if folder is None or not Path(folder).is_dir():
        return
    # Besides the tensors: the code, the trial's small files, the file system's own blocks.
    needed = _tensor_bytes(checkpoint) * 102 // 100 + 2 * 1024**2
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"the checkpoint storage {folder} has {free / 1e6:.0f} MB free, and a checkpoint needs "
            f"{needed / 1e6:.0f} MB: make room there; earlier checkpoints are untouched, and the "
            "run goes on from the newest (on a cluster: det experiment continue ID)"
        )


def _tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return sum(_tensor_bytes(each) for each in content)
    return 0


def allow_checkpoint_globals() -> None:
    """Let torch.load(weights_only=True) read the NumPy random state that Determined saves.

    Determined 0.38.1 loads with torch's default, which since torch 2.6 refuses it. Naming the few
    types keeps the refusal of everything else.
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


def load_detector(
    path: Path,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    use_ema: bool = True,
) -> EfficientDet:
    """A detector with the weights of a trial's checkpoint folder or of a weights file.

    Args:
        path: a checkpoint folder of this project, or a .pth, .pt or .safetensors file.
        model: the detector's name; a checkpoint folder knows its own.
        num_classes: classes of a weights file (90 if None); a checkpoint folder knows its own.
        image_size: height and width in pixels; None: as trained, or the model's own.
        use_ema: take the averaged weights where there are any.

    Raises:
        CheckpointError: nothing there, damaged, or not the kind that was said.
    """
    if path.is_dir():
        verify_digests(path)
        return _from_trial(path, model, image_size, use_ema)
    if model is None:
        raise CheckpointError(
            f"{path}: is not a checkpoint folder of this project; for a weights file name its "
            "model, such as --model tf_efficientdet_d0"
        )
    detector = build_detector(model, num_classes or 90, image_size)
    load_weights(detector, path, prefer_ema=use_ema)
    return detector


def trained_categories(path: Path) -> Categories | None:
    """The categories that a checkpoint folder was trained on; None for a file of weights."""
    if not path.is_dir():
        return None
    found = json.loads((path / DETECTOR).read_text(encoding="utf-8"))["categories"]
    return Categories(ids=tuple(found["ids"]), names=tuple(found["names"]))


def _from_trial(
    folder: Path, model: str | None, image_size: tuple[int, int] | None, use_ema: bool
) -> EfficientDet:
    description = json.loads((folder / DETECTOR).read_text(encoding="utf-8"))
    if model is not None and model != description["model"]:
        raise CheckpointError(
            f"{folder}: holds {description['model']}, not {model}; leave the model out"
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
    averaged = state["callbacks"]["position"]["ema"]
    if use_ema and averaged is not None:
        weights = averaged
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(weights, "module.")
    detector.load_state_dict(weights)
    return detector


@dataclass(frozen=True)
class SavedCheckpoint:
    """One finished checkpoint of a local run."""

    uuid: str
    batches: int
    metric: float | None


class LocalCheckpoints:
    """The checkpoints of a run without a cluster: which are whole, which is the newest, the best.

    Determined writes them below `<run>/checkpoints/determined/<uuid>`; nothing off a cluster keeps
    count of them or deletes old ones, so this index does. A folder that the index does not name
    was cut off while it was written.
    """

    def __init__(self, run: Path) -> None:
        self._index = run / "checkpoints.json"
        self._data_home = run / "checkpoints"

    @property
    def data_home(self) -> Path:
        """What XDG_DATA_HOME must be for Determined to write here."""
        return self._data_home

    def folder(self, saved: SavedCheckpoint) -> Path:
        """Where a checkpoint lies."""
        return self._data_home / "determined" / saved.uuid

    def all(self) -> list[SavedCheckpoint]:
        """The checkpoints, oldest first."""
        if not self._index.is_file():
            return []
        return [SavedCheckpoint(**entry) for entry in json.loads(self._index.read_text())]

    def newest(self) -> SavedCheckpoint | None:
        """The newest whole checkpoint."""
        return self.all()[-1] if self.all() else None

    def best(self) -> SavedCheckpoint | None:
        """The checkpoint of the highest validation metric; the newest if none was validated."""
        rated = [saved for saved in self.all() if saved.metric is not None]
        return max(rated, key=lambda saved: saved.metric or 0.0) if rated else self.newest()

    def add(self, saved: SavedCheckpoint) -> None:
        """Take a finished checkpoint in, then delete all but the two newest and the best.

        The two newest, so that damage to one does not lose the run.
        """
        entries = [*(old for old in self.all() if old.batches < saved.batches), saved]
        rated = [entry for entry in entries if entry.metric is not None]
        keep = entries[-2:]
        if rated:
            keep.append(max(rated, key=lambda entry: entry.metric or 0.0))
        entries = [entry for entry in entries if entry in keep]
        write_atomically(self._index, json.dumps([vars(entry) for entry in entries], indent=1))
        self.remove_unlisted()

    def remove_unlisted(self) -> None:
        """Delete the folders of checkpoints that the index does not name."""
        named = {saved.uuid for saved in self.all()}
        storage = self._data_home / "determined"
        for folder in storage.iterdir() if storage.is_dir() else []:
            if folder.name not in named:
                shutil.rmtree(folder)


def detector_description(
    detector: EfficientDet, overrides: dict[str, Any], categories: Categories
) -> str:
    """The text of detector.json: what makes this detector again, and what its labels mean."""
    config = detector.config
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
