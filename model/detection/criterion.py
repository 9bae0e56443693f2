"""The criterion: losses of a detector's outputs, given the boxes and labels of its images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DetectorConfig
from model.detection.anchors import anchor_boxes
from model.detection.losses import FocalSum
from model.detection.outputs import Outputs, flatten_boxes
from model.detection.targets import Targets, assign_targets
from model.network.sync_batchnorm import AllReduceSum


def _of_one_rank(tensor: Tensor) -> Tensor:
    return tensor


class DetectionCriterion(nn.Module):
    """Focal loss of the classes plus `box_loss_weight` times the Huber loss of the boxes.

    Losses are float32, whatever the outputs are, and are divided by the number of positive anchors.
    The legacy form of the focal loss is the same function without label smoothing; its exponential,
    which overflowed at logits below -88, is not used.

    The module has no parameters and nothing in its state dict. It works on the device that it is
    moved to.

    Args:
        config: of the detector.
    """

    _anchors: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("_anchors", anchor_boxes(config), persistent=False)

    def forward(
        self, outputs: Outputs, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of one process's batch.

        Args:
            outputs: of the detector.
            boxes: (N, M, 4) y1 x1 y2 x2 in pixels of the network's input.
            labels: (N, M) 1..C, -1 for padding.

        Returns:
            The loss, its class part and its box part, each a scalar.
        """
        targets = self.assign(boxes, labels)
        return self.losses(outputs, targets, self.normalizer(targets))

    # The same in steps, for targets that are assigned elsewhere and batches of several ranks.

    def assign(self, boxes: Tensor, labels: Tensor) -> Targets:
        """What the outputs for these boxes and labels should be.

        Args:
            boxes: (N, M, 4) y1 x1 y2 x2 in pixels of the network's input.
            labels: (N, M) 1..C, -1 for padding.
        """
        return assign_targets(self._anchors, boxes, labels)

    def normalizer(
        self, targets: Targets, num_ranks: int = 1, all_reduce_sum: AllReduceSum = _of_one_rank
    ) -> Tensor:
        """Positive anchors of the global batch, plus 1, divided by the number of ranks.

        Gradients are averaged over the ranks. With this normalizer they are those of one process
        with the whole batch.

        Args:
            targets: of this rank's share of the batch.
            num_ranks: processes that share the batch.
            all_reduce_sum: returns the sum of a tensor over these ranks.
        """
        return (all_reduce_sum(targets.num_positives.sum()) + 1.0) / num_ranks

    def losses(
        self, outputs: Outputs, targets: Targets, normalizer: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compare outputs with targets.

        Args:
            outputs: of the detector.
            targets: as `assign` returns them, on the outputs' device.
            normalizer: a scalar that the sums are divided by.

        Returns:
            The loss, its class part and its box part, each a scalar.
        """
        class_logits, box_regressions = outputs
        class_loss = self._class_sum(class_logits, targets.class_targets) / normalizer
        box_loss = self._box_sum(box_regressions, targets.box_targets) / (normalizer * 4.0)
        return class_loss + self.config.box_loss_weight * box_loss, class_loss, box_loss

    def _class_sum(self, class_logits: list[Tensor], class_targets: Tensor) -> Tensor:
        config = self.config
        total = torch.zeros((), device=class_targets.device)
        start = 0
        for logits in class_logits:
            height, width = logits.shape[2:]
            end = start + height * width * config.num_anchors
            level_targets = class_targets[:, start:end].unflatten(1, (height, width, -1))
            total = total + FocalSum.apply(
                logits, level_targets, config.alpha, config.gamma, config.label_smoothing
            )
            start = end
        return total

    def _box_sum(self, box_regressions: list[Tensor], box_targets: Tensor) -> Tensor:
        predicted = flatten_boxes(box_regressions).float()
        # A target of exactly 0 counts as none; only anchors that learn a box have other targets.
        predicted = torch.where(box_targets != 0.0, predicted, 0.0)
        return F.huber_loss(predicted, box_targets, reduction="sum", delta=self.config.delta)
