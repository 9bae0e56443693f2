"""Anchor boxes, and boxes encoded relative to them."""

import torch
from torch import Tensor

from model.config import DetectorConfig

# Keeps the logarithm finite for a box without area.
CODE_EPSILON = 1e-7


def anchor_boxes(config: DetectorConfig) -> Tensor:
    """All anchors of a detector, in the order of its flattened predictions.

    At each position of a level there is one anchor for each scale 2**(i / num_scales) and aspect
    ratio (RetinaNet, https://arxiv.org/abs/1708.02002, section 4), the ratio changing fastest.

    Returns:
        (num_anchors, 4) float32: y1 x1 y2 x2 in pixels of the network's input, by level, row,
        column, anchor.
    """
    height, width = config.image_size
    sides = torch.tensor(
        [
            [2 ** (octave / config.num_scales) * side for side in _sides(ratio)]
            for octave in range(config.num_scales)
            for ratio in config.aspect_ratios
        ],
        dtype=torch.float64,
        device="cpu",
    )
    levels = []
    for rows, columns in config.level_sizes:
        stride = torch.tensor([height / rows, width / columns], dtype=torch.float64, device="cpu")
        y = (torch.arange(rows, dtype=torch.float64, device="cpu") + 0.5) * stride[0]
        x = (torch.arange(columns, dtype=torch.float64, device="cpu") + 0.5) * stride[1]
        centers = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 1, 2)
        half = config.anchor_scale * stride * sides / 2
        levels.append(torch.cat([centers - half, centers + half], dim=-1).reshape(-1, 4))
    return torch.cat(levels).float()


def _sides(ratio: tuple[float, float] | float) -> tuple[float, float]:
    """Height and width factors of an aspect ratio."""
    if isinstance(ratio, tuple | list):
        return ratio[1], ratio[0]
    return 1.0 / ratio**0.5, ratio**0.5


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes relative to anchors (Faster R-CNN, https://arxiv.org/abs/1506.01497, equation 2).

    Args:
        boxes: (..., 4) y1 x1 y2 x2.
        anchors: (..., 4) y1 x1 y2 x2, broadcast against boxes.

    Returns:
        (..., 4) ty tx th tw.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    center = boxes[..., :2] + size / 2
    anchor_center = anchors[..., :2] + anchor_size / 2
    anchor_size = anchor_size + CODE_EPSILON
    return torch.cat(
        [
            (center - anchor_center) / anchor_size,
            torch.log((size + CODE_EPSILON) / anchor_size),
        ],
        dim=-1,
    )


def decode_boxes(codes: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode_boxes`: ty tx th tw -> y1 x1 y2 x2, in the anchors' pixels."""
    anchor_center = (anchors[..., :2] + anchors[..., 2:]) / 2
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    half = codes[..., 2:].exp() * anchor_size / 2
    center = codes[..., :2] * anchor_size + anchor_center
    return torch.cat([center - half, center + half], dim=-1)
