"""Evaluates a detector on a split: its metrics and losses."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cocodata import Categories, Split
from experiments.evaluation.coco import CocoGroundTruth, CocoResult, coco_metrics
from experiments.evaluation.detections import Detections, DetectionTable
from experiments.input import Batch, EvalLoader, InputConfig
from experiments.runtime.communication import Communicator, SingleProcess
from model import DetectionCriterion, DetectorConfig, EfficientDet, Outputs, Postprocessor

VALIDATION_LOSSES = ("val_loss", "val_class_loss", "val_box_loss")


@dataclass(frozen=True)
class Evaluation:
    """The results of one pass over a split."""

    result: CocoResult
    detections: Detections
    losses: dict[str, float]
    """The values of `VALIDATION_LOSSES`, normalised over the whole split."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The 12 metrics and the losses by name, and `ap_per_class`."""
        return {**self.result.metrics, **self.losses, "ap_per_class": self.result.ap_per_class}


@torch.inference_mode()
def detect_batch(
    detector: EfficientDet, postprocessor: Postprocessor, batch: Batch
) -> tuple[Outputs, Tensor]:
    """Detect objects in a batch, in float32 whatever precision training uses.

    The evaluation in training, evaluate.py and predict.py all use this function, so that users get
    the AP for which a checkpoint was selected.

    Args:
        detector: A detector in eval mode.
        postprocessor: Its postprocessor, on its device.
        batch: A batch from an `EvalLoader`, on the same device.

    Returns:
        The detector's outputs, and the postprocessor's detections.
    """
    images = batch["image"]
    with torch.autocast(images.device.type, enabled=False):
        outputs = detector(images)
        detections = postprocessor(outputs, batch["source_scale"], batch["source_size"])
    return outputs, detections


class SplitEvaluator:
    """Evaluates a split by batches, each rank its own shard.

    The results do not depend on how images are distributed over ranks and batches. In particular,
    losses are summed over all images and divided once, rather than averaged over batches.
    """

    def __init__(
        self,
        config: DetectorConfig,
        device: torch.device,
        ground_truth: CocoGroundTruth,
        categories: Categories,
    ) -> None:
        """Create an evaluator for detectors of one configuration.

        Args:
            config: The detector's configuration.
            device: The detector's device.
            ground_truth: The split's annotations.
            categories: The split's categories.
        """
        self._device = device
        self._ground_truth = ground_truth
        self._categories = categories
        self._criterion = DetectionCriterion(config).to(device)
        self._postprocessor = Postprocessor(config).to(device)
        self._one = torch.ones((), device=device)
        self.reset()

    def reset(self) -> None:
        """Start a new evaluation."""
        self._table = DetectionTable()
        # Sums of VALIDATION_LOSSES and the number of positives; in float64, so that the order of
        # images hardly matters.
        self._sums = torch.zeros(4, dtype=torch.float64, device=self._device)

    @torch.inference_mode()
    def add(self, detector: EfficientDet, batch: Batch) -> None:
        """Evaluate one batch, which is on the detector's device.

        Raises:
            RuntimeError: The detector is in training mode.
        """
        if detector.training:
            raise RuntimeError("a detector in training mode cannot be evaluated: call eval() first")
        outputs, detections = detect_batch(detector, self._postprocessor, batch)
        targets = self._criterion.assign(batch["boxes"], batch["labels"])
        losses = self._criterion.losses(outputs, targets, normalizer=self._one)
        self._sums += torch.stack([*losses, targets.num_positives.sum()])
        self._table.add(batch["image_id"], detections)

    def gather(self, communicator: Communicator) -> Evaluation:
        """Return the evaluation over the images of all ranks; all ranks must call this.

        Raises:
            ValueError: An image of the split was not evaluated, or more than once.
        """
        detections = self._table.gather(communicator, self._categories)
        *sums, positives = communicator.all_reduce_sum(self._sums.cpu()).tolist()
        return Evaluation(
            result=coco_metrics(self._ground_truth, detections),
            detections=detections,
            losses={
                name: value / (positives + 1)
                for name, value in zip(VALIDATION_LOSSES, sums, strict=True)
            },
        )


def evaluate_detector(
    detector: EfficientDet,
    split: Split,
    input_config: InputConfig,
    *,
    batch_size: int,
    communicator: Communicator | None = None,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] = lambda batches, _: batches,
) -> Evaluation:
    """Evaluate a detector on a split, each rank on its share of the images.

    Args:
        detector: The detector, on the device to use; it is in eval mode afterwards.
        split: The images and annotations.
        input_config: Configuration of the input pipeline.
        batch_size: Images per batch.
        communicator: Communicator of the ranks; None for a single process.
        progress: Wraps the iterable of batches, given their number, to show progress.

    Raises:
        ValueError: The detector and the split differ in the number of classes.
        SampleError: An image file has become unusable.
    """
    config = detector.config
    if config.num_classes != split.categories.num_classes:
        raise ValueError(
            f"the detector has {config.num_classes} classes, but {split.annotation_file} has "
            f"{split.categories.num_classes}: the detector was trained on another data set"
        )
    communicator = communicator or SingleProcess()
    device = next(detector.parameters()).device
    evaluator = SplitEvaluator(config, device, CocoGroundTruth(split), split.categories)
    detector.eval()
    with EvalLoader(
        split,
        replace(input_config, batch_device=device),
        batch_size=batch_size,
        rank=communicator.rank,
        num_ranks=communicator.size,
    ) as loader:
        for batch in progress(loader, len(loader)):
            evaluator.add(detector, batch)
    return evaluator.gather(communicator)
