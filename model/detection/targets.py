"""Target assignment: which anchors learn which box."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.detection.anchors import encode_boxes
from model.detection.device import runs_eagerly_on_cpu

# Overlap with a box from which an anchor learns that box.
MATCH_THRESHOLD = 0.5

# Pairs of box and anchor that are compared at a time. On a CPU their overlaps stay in the
# second-level cache; elsewhere they take at most 64 MiB per tensor.
_CPU_PAIRS = 2**17
_DEVICE_PAIRS = 2**24


class Targets(NamedTuple):
    """What each anchor of a batch should predict.

    Attributes:
        class_targets: (N, K) int64, the class 0..C-1, -1 for background, -2 for an anchor
            that the loss ignores.
        box_targets: (N, K, 4) float32, ty tx th tw; zeros for anchors that learn no box.
        num_positives: (N,) float32, anchors of each image that learn a box.
    """

    class_targets: Tensor
    box_targets: Tensor
    num_positives: Tensor


@torch.no_grad()
def assign_targets(anchors: Tensor, boxes: Tensor, labels: Tensor) -> Targets:
    """Match anchors to boxes: by overlap, and for each box at least its best anchor.

    An anchor takes the box that it overlaps most, the earlier of two equals, if their intersection
    over union is at least MATCH_THRESHOLD. Then each box takes its best anchor, the earlier of two
    equals, whatever the overlap. If an anchor is the best of several boxes, the earliest of them
    takes it. Padding never matches.

    Args:
        anchors: (K, 4) y1 x1 y2 x2.
        boxes: (N, M, 4) y1 x1 y2 x2 in the same pixels.
        labels: (N, M) 1..C, -1 for padding.
    """
    valid = labels > -1
    boxes = boxes.float()
    if runs_eagerly_on_cpu(boxes):
        # Padding costs as much as boxes, and most of a batch is padding.
        used = int((valid * torch.arange(1, valid.shape[1] + 1)).amax()) if valid.numel() else 0
        valid, boxes, labels = valid[:, :used], boxes[:, :used], labels[:, :used]
    num_images, num_boxes = valid.shape
    if num_boxes == 0:
        return Targets(
            torch.full((num_images, len(anchors)), -1, device=anchors.device),
            torch.zeros(num_images, len(anchors), 4, device=anchors.device),
            torch.zeros(num_images, device=anchors.device),
        )

    # A box without area overlaps nothing.
    overlap, matches, best_anchors = _match(anchors, boxes * valid.unsqueeze(-1))
    matches = torch.where(overlap >= MATCH_THRESHOLD, matches, num_boxes)

    box_indices = torch.arange(num_boxes, device=boxes.device)
    taken_by = torch.full_like(matches, num_boxes).scatter_reduce_(
        1, best_anchors, torch.where(valid, box_indices, num_boxes), reduce="amin"
    )
    matches = torch.where(taken_by < num_boxes, taken_by, matches)

    matched = matches < num_boxes
    matches = torch.where(matched, matches, 0)
    class_targets = torch.where(matched, labels.long().gather(1, matches) - 1, -1)
    matched_boxes = boxes.gather(1, matches.unsqueeze(-1).expand(-1, -1, 4))
    box_targets = torch.where(matched.unsqueeze(-1), encode_boxes(matched_boxes, anchors), 0.0)
    return Targets(class_targets, box_targets, matched.sum(1, dtype=torch.float32))


def _match(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best box of each anchor, (N, K) overlap and index, and best anchor of each box, (N, M)."""
    num_pairs = boxes.shape[0] * boxes.shape[1]
    if torch.compiler.is_compiling():
        chunk = len(anchors)  # the compiler fuses the overlaps, so they take no memory
    else:
        budget = _CPU_PAIRS if runs_eagerly_on_cpu(boxes) else _DEVICE_PAIRS
        chunk = max(1, budget // num_pairs)
    y1, x1, y2, x2 = boxes.unsqueeze(-1).unbind(2)  # (N, M, 1) each
    area = (y2 - y1) * (x2 - x1)
    anchor_sides = anchors.t().contiguous()
    anchor_area = (anchor_sides[2] - anchor_sides[0]) * (anchor_sides[3] - anchor_sides[1])

    overlaps, matches = [], []
    best = torch.full_like(area[..., 0], -1.0)
    best_anchors = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(anchors), chunk):
        part = slice(start, start + chunk)
        ay1, ax1, ay2, ax2 = anchor_sides[:, part].unbind()
        intersection = (torch.minimum(y2, ay2) - torch.maximum(y1, ay1)).clamp_(min=0)
        intersection *= (torch.minimum(x2, ax2) - torch.maximum(x1, ax1)).clamp_(min=0)
        union = (area + anchor_area[part]).sub_(intersection)
        overlap = torch.where(intersection == 0.0, 0.0, intersection / union)
        chunk_overlap, chunk_match = overlap.max(dim=1)
        overlaps.append(chunk_overlap)
        matches.append(chunk_match)
        chunk_best, chunk_anchor = overlap.max(dim=2)
        # Only a strictly better one: of equal anchors the earlier is kept.
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        best_anchors = torch.where(better, chunk_anchor + start, best_anchors)
    return torch.cat(overlaps, dim=1), torch.cat(matches, dim=1), best_anchors
