"""Disk space for a checkpoint, checked before a byte of it is written."""

import shutil
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoints.contents import CheckpointError


def require_space(folder: Path | None, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint fits in the storage that it is about to be written to.

    Args:
        folder: the storage; an object store (None) or a folder that does not exist yet is not
            checked.
        checkpoint: what is about to be saved.

    Raises:
        CheckpointError: there is too little space.
    """
    if folder is None or not folder.is_dir():
        return
    # Besides the tensors: the code, the trial's small files, the file system's own blocks.
    needed = _tensor_bytes(checkpoint) * 102 // 100 + 2 * 1024**2
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"the checkpoint storage {folder} has {free / 1e6:.0f} MB free, and a checkpoint needs "
            f"{needed / 1e6:.0f} MB: free some space; earlier checkpoints are untouched, and the "
            "run continues from the newest (on a cluster: det experiment continue ID)"
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
