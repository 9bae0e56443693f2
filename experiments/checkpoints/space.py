"""Checks the disk space for a checkpoint before it is written."""

import shutil
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoints.contents import CheckpointError


def require_space(folder: Path | None, checkpoint: dict[str, Any]) -> None:
    """Check that there is enough space for a checkpoint.

    Args:
        folder: The checkpoint storage; None (an object store) and missing folders are not checked.
        checkpoint: The state to be saved.

    Raises:
        CheckpointError: There is too little space.
    """
    if folder is None or not folder.is_dir():
        return
    # The tensors, plus the code, small files and the file system's overhead.
    needed = _tensor_bytes(checkpoint) * 102 // 100 + 2 * 1024**2
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"the checkpoint storage {folder} has {free / 1e6:.0f} MB free, and a checkpoint needs "
            f"{needed / 1e6:.0f} MB: free some space; earlier checkpoints are untouched, and the "
            "run continues from the newest (on a cluster: det experiment continue ID)"
        )


def _tensor_bytes(content: Any) -> int:
    """Return the size of all tensors in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return sum(_tensor_bytes(each) for each in content)
    return 0
