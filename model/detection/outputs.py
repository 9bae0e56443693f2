"""What a detector predicts."""

import torch
from torch import Tensor

# Class logits, N x A*C x h x w of each level, and box regressions, N x A*4 x h x w of each level.
Outputs = tuple[list[Tensor], list[Tensor]]


def flatten_boxes(box_regressions: list[Tensor]) -> Tensor:
    """N x A*4 x h x w of each level -> (N, K, 4), in the order of the anchors."""
    return torch.cat(
        [x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for x in box_regressions], 1
    )
