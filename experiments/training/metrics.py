"""Metrics that Determined reports, reduced over batches and ranks without a copy per batch."""

from typing import Any

from determined import pytorch
from torch import Tensor

from experiments.evaluation.loop import Evaluation, SplitEvaluator
from experiments.runtime.communication import Communicator
from reporting.progress import TrainingProgress

LOSSES = ("loss", "class_loss", "box_loss")


class TrainingReducer(pytorch.MetricReducer):
    """Means of the losses since the last report, and images/s.

    Sums stay on the device until a report is due. Copying each batch's losses, as Determined does
    with the values that train_batch returns, would make the GPU wait after every step.
    """

    def __init__(self, progress: TrainingProgress) -> None:
        self._progress = progress
        self.reset()

    def reset(self) -> None:
        """Start a reporting period."""
        self._sums: list[Any] = []
        self._batches = 0
        self._progress.start_window()

    def update(self, loss: Tensor, class_loss: Tensor, box_loss: Tensor) -> None:
        """Add a batch."""
        losses = [loss, class_loss, box_loss]
        self._sums = [
            total + value for total, value in zip(self._sums or [0.0] * 3, losses, strict=True)
        ]
        self._batches += 1

    def per_slot_reduce(self) -> dict[str, float]:
        """This rank's means."""
        means = [float(total) / self._batches for total in self._sums]
        metrics = dict(zip(LOSSES, means, strict=True))
        return metrics | {"images_per_second": self._progress.images_per_second()}

    def cross_slot_reduce(self, per_slot_metrics: list[dict[str, float]]) -> dict[str, float]:
        """The means over the ranks; each rank's losses are normalized by the global batch."""
        count = len(per_slot_metrics)
        return {
            name: sum(metrics[name] for metrics in per_slot_metrics) / count
            for name in per_slot_metrics[0]
        }


class EvaluationReducer(pytorch.MetricReducer):
    """COCO's metrics and the losses on the whole validation split."""

    def __init__(self, evaluator: SplitEvaluator, communicator: Communicator) -> None:
        self._evaluator = evaluator
        self._communicator = communicator
        self.last: Evaluation | None = None

    def reset(self) -> None:
        """Start an evaluation."""
        self._evaluator.reset()

    def per_slot_reduce(self) -> dict[str, Any]:
        """The metrics over all ranks' images.

        Detections are gathered here, as tensors, because Determined would pickle what
        `cross_slot_reduce` receives.
        """
        self.last = self._evaluator.gather(self._communicator)
        return self.last.metrics

    def cross_slot_reduce(self, per_slot_metrics: list[dict[str, Any]]) -> dict[str, Any]:
        """Rank 0's."""
        return per_slot_metrics[0]
