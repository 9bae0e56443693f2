"""The postprocessor: from outputs to detections in the source images' pixels."""

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from model.config import DetectorConfig
from model.detection.anchors import anchor_boxes, decode_boxes
from model.detection.outputs import Outputs, flatten_boxes

# Overlap of two boxes of a class above which the one with the lower score is dropped.
IOU_THRESHOLD = 0.5

# Candidates that suppression processes first. It keeps boxes in the order of their scores, so if
# enough of these are kept, the others cannot change the result.
_FIRST_CANDIDATES = 1000

# Soft-NMS (https://arxiv.org/abs/1704.04503, section 3): width of the Gaussian penalty, and the
# score below which a box is dropped.
_SOFT_SIGMA = 0.5
_SOFT_MIN_SCORE = 0.001


class Postprocessor(nn.Module):
    """Outputs -> detections, best first.

    If two boxes of a class overlap, the one with the lower score is dropped or, with the
    configuration's soft_nms, gets an even lower score. The module has no parameters and nothing in
    its state dict. It works on the device that it is moved to.

    Args:
        config: of the detector.
    """

    _anchors: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("_anchors", anchor_boxes(config), persistent=False)

    @torch.no_grad()
    def forward(self, outputs: Outputs, source_scale: Tensor, source_size: Tensor) -> Tensor:
        """The detections of each image.

        Args:
            outputs: of the detector.
            source_scale: (N,) pixels of the source image per pixel of the network's input.
            source_size: (N, 2) height and width of the source images, in pixels.

        Returns:
            (N, max_det_per_image, 6) float32, rows x1 y1 x2 y2 score label: corners in pixels of
            the source image, within it; labels from 1. Rows of zeros follow the last detection.
        """
        config = self.config
        class_logits, box_regressions = outputs
        source_scale = source_scale.float().unsqueeze(1)
        scores, classes, chosen = _top_candidates(class_logits, config)
        codes = flatten_boxes(box_regressions)
        codes = codes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4)).float()
        boxes = decode_boxes(codes, self._anchors[chosen])
        limit = (source_size / source_scale).repeat(1, 2).unsqueeze(1)
        boxes = torch.minimum(boxes.clamp_(min=0), limit)[..., [1, 0, 3, 2]]

        suppress = _soft_nms if config.soft_nms else _hard_nms
        kept, scores = suppress(boxes, scores, classes, config.max_det_per_image)
        is_kept = kept >= 0
        kept = kept.clamp(min=0)
        boxes = boxes.gather(1, kept.unsqueeze(-1).expand(-1, -1, 4)) * source_scale.unsqueeze(-1)
        labels = classes.gather(1, kept) + 1.0
        rows = torch.cat([boxes, scores.unsqueeze(-1), labels.unsqueeze(-1)], dim=-1)
        return torch.where(is_kept.unsqueeze(-1), rows, 0.0)


def _top_candidates(
    class_logits: list[Tensor], config: DetectorConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, classes (from 0) and anchors of the pairs of anchor and class with the best logits.

    A pair among the best P belongs to an anchor whose best class is among the best P of all
    anchors. So the anchors are ranked first, and only the logits of the best ones are copied and
    ranked again, about a tenth of all.
    """
    num_images, num_classes = class_logits[0].shape[0], config.num_classes
    # (N, h, w, A, C) each, as views
    levels = [x.unflatten(1, (config.num_anchors, -1)).permute(0, 3, 4, 1, 2) for x in class_logits]
    best = torch.cat([level.amax(-1).flatten(1) for level in levels], dim=1)
    num_anchors = min(config.max_detection_points, best.shape[1])
    ranked = best.topk(num_anchors, dim=1, sorted=False).indices

    candidates = best.new_empty(num_images, num_anchors, num_classes)
    start = 0
    for level in levels:
        _, height, width, anchors, _ = level.shape
        end = start + height * width * anchors
        image, row = torch.where((ranked >= start) & (ranked < end))
        position = ranked[image, row] - start
        cell = position // anchors
        candidates[image, row] = level[image, cell // width, cell % width, position % anchors]
        start = end

    count = min(config.max_detection_points, num_anchors * num_classes)
    logits, indices = candidates.flatten(1).topk(count, dim=1)
    chosen = ranked.gather(1, indices // num_classes)
    # Rounded to 16 bits, most scores of an image would be equal.
    return logits.float().sigmoid(), indices % num_classes, chosen


def _hard_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, max_detections: int
) -> tuple[Tensor, Tensor]:
    """Indices (-1 for none) and scores of the boxes that are kept, (N, max_detections)."""
    num_images, num_boxes = scores.shape
    # Boxes of different classes are moved apart, in float64 so that no precision is lost.
    offset = classes.double() * (boxes.amax().double() + 1.0)
    apart = boxes.double() + offset.unsqueeze(-1)
    kept = classes.new_full((num_images, max_detections), -1)
    for i in range(num_images):
        indices = nms(
            apart[i, :_FIRST_CANDIDATES], scores[i, :_FIRST_CANDIDATES].double(), IOU_THRESHOLD
        )
        if len(indices) < max_detections and num_boxes > _FIRST_CANDIDATES:
            indices = nms(apart[i], scores[i].double(), IOU_THRESHOLD)
        indices = indices[:max_detections]
        kept[i, : len(indices)] = indices
    return kept, scores.gather(1, kept.clamp(min=0))


def _soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, max_detections: int
) -> tuple[Tensor, Tensor]:
    """Indices (-1 for none) and lowered scores of the boxes that are kept, (N, max_detections).

    In each step, for all images at once, the best remaining box is kept, and the others of its
    class get lower scores, depending on their overlap with it.
    """
    scores = scores.clone()
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    kept = classes.new_full((len(boxes), max_detections), -1)
    kept_scores = scores.new_zeros(len(boxes), max_detections)
    for step in range(min(max_detections, scores.shape[1])):
        best_score, best = scores.max(dim=1, keepdim=True)
        is_left = best_score > 0.0
        kept[:, step] = torch.where(is_left, best, -1)[:, 0]
        kept_scores[:, step] = best_score[:, 0]

        box = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
        sides = torch.minimum(box[..., 2:], boxes[..., 2:]) - torch.maximum(
            box[..., :2], boxes[..., :2]
        )
        intersection = sides.clamp_(min=0).prod(-1)
        intersection *= classes == classes.gather(1, best)
        overlap = intersection / (areas.gather(1, best) + areas - intersection)
        overlap = torch.where(intersection > 0, overlap, 0.0)
        scores *= torch.exp(-overlap.square() / _SOFT_SIGMA)
        scores.scatter_(1, best, 0.0)
        scores *= scores > _SOFT_MIN_SCORE
    return kept, kept_scores
