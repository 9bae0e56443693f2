"""COCO metrics computed by pycocotools."""

import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bench.contenders.coco_result import SPLIT, load_result, result_folder
from bench.measuring import Measurement, Settings
from cocodata import DatasetFolder

_MIN_SCORE = 0.001
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Metrics:
    """Computes the 12 metrics from the annotation file and a detector's output.

    Detections are passed as one array, which is faster than a file or a list of dictionaries.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = DatasetFolder(result_folder(settings)).annotation_file(SPLIT)
        self._result = load_result(settings)

    def warm_up(self) -> None:
        """Do nothing: an evaluation is one long piece of work."""

    def measure(self, seconds: float) -> Measurement:
        """Evaluate once, however long that takes."""
        image_ids, rows = self._result
        start = time.perf_counter()
        truth = COCO(str(self._file))
        truth_loaded = time.perf_counter()
        kept = rows[..., 4] >= _MIN_SCORE
        x1, y1, x2, y2, score, label = rows[kept].T
        owner = np.repeat(image_ids, kept.sum(axis=1))
        columns = np.column_stack([owner, x1, y1, x2 - x1, y2 - y1, score, label])
        detections = truth.loadRes(columns)
        detections_ready = time.perf_counter()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        end = time.perf_counter()
        stages = {
            "ground truth": truth_loaded - start,
            "detections": detections_ready - truth_loaded,
            "metrics": end - detections_ready,
        }
        outcome = dict(zip(_METRICS, evaluation.stats.tolist(), strict=True))
        return Measurement(1, end - start, stages, outcome)
