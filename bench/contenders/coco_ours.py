"""COCO's metrics by this project."""

import time

import torch

from bench.contenders.coco_result import SPLIT, load_result, result_folder
from bench.measuring import Measurement, Settings
from cocodata import load_split
from experiments.evaluation import CocoGroundTruth, DetectionTable, coco_metrics
from experiments.runtime.communication import SingleProcess


class Metrics:
    """From the annotation file and a detector's tensors to the 12 numbers."""

    def __init__(self, settings: Settings) -> None:
        self._data = result_folder(settings)
        self._result = load_result(settings)
        torch.set_num_threads(settings.threads)

    def warm_up(self) -> None:
        """Nothing: an evaluation is one long piece of work."""

    def measure(self, seconds: float) -> Measurement:
        """Evaluate once, however long it takes."""
        image_ids, rows = (torch.from_numpy(array) for array in self._result)
        start = time.perf_counter()
        split = load_split(self._data, SPLIT)
        ground_truth = CocoGroundTruth(split)
        truth_read = time.perf_counter()
        table = DetectionTable()
        table.add(image_ids, rows)
        detections = table.gather(SingleProcess(), split.categories)
        collected = time.perf_counter()
        result = coco_metrics(ground_truth, detections)
        end = time.perf_counter()
        stages = {
            "ground truth": truth_read - start,
            "detections": collected - truth_read,
            "metrics": end - collected,
        }
        return Measurement(1, end - start, stages, result.metrics)
