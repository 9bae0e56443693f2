"""Evaluation of detectors: COCO metrics, drawn detections, and the report of a run."""

from experiments.evaluation.coco import CocoGroundTruth, CocoResult, coco_metrics
from experiments.evaluation.detections import (
    MIN_SCORE,
    Detections,
    DetectionTable,
    write_coco_results,
)

__all__ = [
    "MIN_SCORE",
    "CocoGroundTruth",
    "CocoResult",
    "DetectionTable",
    "Detections",
    "coco_metrics",
    "write_coco_results",
]
