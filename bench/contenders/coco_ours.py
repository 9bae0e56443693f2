"""COCO metrics computed by this project."""

import time

import torch

from bench.contenders.coco_result import SPLIT, load_result, result_folder
from bench.measuring import Measurement, Settings
from cocodata import load_split
from experiments.evaluation import CocoGroundTruth, DetectionTable, coco_metrics
from experiments.runtime.communication import SingleProcess


class Metrics:
    """Computes the 12 metrics from the annotation file and a detector's output."""

    def __init__(self, settings: Settings) -> None:
        self._data = result_folder(settings)
        self._result = load_result(settings)
        torch.set_num_threads(settings.threads)

    def warm_up(self) -> None:
        """Do nothing: an evaluation is one long piece of work."""

    def measure(self, seconds: float) -> Measurement:
        """Evaluate once, however long that takes."""
        image_ids, rows = (torch.from_numpy(array) for array in self._result)
        start = time.perf_counter()
        split = load_split(self._data, SPLIT)
        ground_truth = CocoGroundTruth(split)
        truth_loaded = time.perf_counter()
        table = DetectionTable()
        table.add(image_ids, rows)
        detections = table.gather(SingleProcess(), split.categories)
        detections_ready = time.perf_counter()
        result = coco_metrics(ground_truth, detections)
        end = time.perf_counter()
        stages = {
            "ground truth": truth_loaded - start,
            "detections": detections_ready - truth_loaded,
            "metrics": end - detections_ready,
        }
        return Measurement(1, end - start, stages, result.metrics)
