"""Room for a checkpoint, checked before a byte of it is written."""

import shutil
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoints.contents import CheckpointError


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
