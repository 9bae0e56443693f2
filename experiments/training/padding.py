"""Padding of boxes that no image of a batch needs."""

from torch import Tensor

# Few different sizes, since target assignment is compiled for each.
_SIZES = (16, 32, 64)


def without_padding(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a batch's boxes and labels, without most of the rows that are padding in all images.

    Padding matches no anchor, so the targets are the same. Nothing is read from a GPU: the number
    of boxes is known on the CPU.

    Args:
        batch: boxes (N, M, 4), labels (N, M) and, on the CPU, box_count (N,).
    """
    needed = int(batch["box_count"].max())
    size = next((size for size in _SIZES if needed <= size), None)
    return batch["boxes"][:, :size], batch["labels"][:, :size]
