"""A detector over a split: what its detections and its loss come to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
    """All that one pass over a split gave."""

    result: CocoResult
    detections: Detections
    losses: dict[str, float]
    """The values of `VALIDATION_LOSSES`, normalized over the whole split."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The 12 metrics and the losses, flat, and `ap_per_class`."""
        return {**self.result.metrics, **self.losses, "ap_per_class": self.result.ap_per_class}


@torch.inference_mode()
def detect_batch(
    detector: EfficientDet, postprocessor: Postprocessor, batch: Batch
) -> tuple[Outputs, Tensor]:
    """The outputs and detections of a batch, in float32 whatever precision training uses.

    Training's evaluation, evaluate.py and predict.py all detect with this function, so that the AP
    by which a checkpoint was chosen is the AP that its users get.

    Args:
        detector: in eval mode.
        postprocessor: for its configuration, on its device.
        batch: of an `EvalLoader`, on the same device.

    Returns:
        The detector's outputs, and the detections as the postprocessor returns them.
    """
    images = batch["image"]
    with torch.autocast(images.device.type, enabled=False):
        outputs = detector(images)
        detections = postprocessor(outputs, batch["source_scale"], batch["source_size"])
    return outputs, detections


class SplitEvaluator:
    """Evaluates a split batch by batch, each rank its shard.

    Nothing in the outcome depends on how images were dealt to ranks and batches: the losses too are
    summed over all images and divided once, where a mean over batches would weigh each by its size.
    """

    def __init__(
        self,
        config: DetectorConfig,
        device: torch.device,
        ground_truth: CocoGroundTruth,
        categories: Categories,
    ) -> None:
        """For detectors of one configuration.

        Args:
            config: of the detector.
            device: of the detector.
            ground_truth: of the split.
            categories: of the split.
        """
        self._device = device
        self._ground_truth = ground_truth
        self._categories = categories
        self._criterion = DetectionCriterion(config).to(device)
        self._postprocessor = Postprocessor(config).to(device)
        self._one = torch.ones((), device=device)
        self.reset()

    def reset(self) -> None:
        """Begin an evaluation."""
        self._table = DetectionTable()
        # The sums of VALIDATION_LOSSES and the positives under them; in double precision, so that
        # the order of the images is not seen in them.
        self._sums = torch.zeros(4, dtype=torch.float64, device=self._device)

    @torch.inference_mode()
    def add(self, detector: EfficientDet, batch: Batch) -> None:
        """Detect and measure one batch.

        Raises:
            RuntimeError: the detector is in training mode, where it normalises by the batch.
        """
        if detector.training:
            raise RuntimeError("a detector in training mode cannot be evaluated: call eval() first")
        batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        outputs, detections = detect_batch(detector, self._postprocessor, batch)
        targets = self._criterion.assign(batch["boxes"], batch["labels"])
        losses = self._criterion.losses(outputs, targets, normalizer=self._one)
        self._sums += torch.stack([*losses, targets.num_positives.sum()])
        self._table.add(batch["image_id"], detections)

    def gather(self, communicator: Communicator) -> Evaluation:
        """The evaluation over all ranks' images; every rank must call it.

        Raises:
            ValueError: an image of the split was not evaluated, or more than once.
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
        detector: on the device where it is to run; it is in eval mode afterwards.
        split: the images and annotations.
        input_config: how images are decoded and resized.
        batch_size: images of a batch.
        communicator: of the ranks; None for this process alone.
        progress: gets the batches and their number, and passes the batches
            on.

    Raises:
        ValueError: the detector's classes are not those of the split.
        SampleError: an image file turned bad.
    """
    config = detector.config
    if config.num_classes != split.categories.num_classes:
        raise ValueError(
            f"the detector has {config.num_classes} classes, {split.annotation_file} has "
            f"{split.categories.num_classes}: it was trained on another data set"
        )
    communicator = communicator or SingleProcess()
    device = next(detector.parameters()).device
    evaluator = SplitEvaluator(config, device, CocoGroundTruth(split), split.categories)
    detector.eval()
    with EvalLoader(
        split,
        input_config,
        batch_size=batch_size,
        rank=communicator.rank,
        num_ranks=communicator.size,
    ) as loader:
        for batch in progress(loader, len(loader)):
            evaluator.add(detector, batch)
    return evaluator.gather(communicator)
