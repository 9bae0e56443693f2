"""Small generated data sets, detections for them, and pycocotools' metrics of the two."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from cocodata import Split, load_split
from experiments.evaluation import MIN_SCORE

# A detection: image id, x1, y1, x2, y2, score, label.
Row = tuple[int, float, float, float, float, float, int]


def write_split(
    folder: Path,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    annotations: Sequence[dict[str, Any]],
) -> Split:
    """Write a data set without image files; annotation ids are numbered from 1."""
    file = folder / "annotations" / "instances_val.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [
            {"id": each, "file_name": f"{each}.jpg", "width": 640, "height": 480}
            for each in image_ids
        ],
        "categories": [{"id": each, "name": f"thing {each}"} for each in category_ids],
        "annotations": [{"id": n, **each} for n, each in enumerate(annotations, start=1)],
    }
    file.write_text(json.dumps(content))
    return load_split(folder, "val")


def to_batch(image_ids: Sequence[int], rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return image ids (N,) and detections (N, K, 6), zero-padded like the postprocessor's."""
    by_image = {each: [row[1:] for row in rows if row[0] == each] for each in image_ids}
    detections = torch.zeros(len(image_ids), max((len(v) for v in by_image.values()), default=0), 6)
    for index, each in enumerate(image_ids):
        if by_image[each]:
            detections[index, : len(by_image[each])] = torch.tensor(by_image[each])
    return torch.tensor(image_ids, dtype=torch.int64), detections


def noisy_detections(split: Split, seed: int, score_steps: int = 50) -> list[Row]:
    """Generate detections: shifted, missed, duplicate and mislabelled boxes, and random ones.

    Scores have few distinct values, so that many are equal. Some images get none.
    """
    generator = np.random.default_rng(seed)
    present = np.unique(split.labels)
    rows: list[Row] = []

    def add(image: int, box: Sequence[float], label: int) -> None:
        y1, x1, y2, x2 = box
        score = float(np.float32(generator.integers(0, score_steps + 1) / score_steps))
        rows.append((image, x1, y1, x2, y2, score, label))

    for index, image in enumerate(split.image_ids.tolist()):
        if generator.random() < 0.1:
            continue
        boxes, labels = split.targets(index)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            for _ in range(generator.integers(0, 4)):
                size = np.array([box[2] - box[0], box[3] - box[1]] * 2)
                moved = np.array(box) + generator.normal(0, 0.08, 4) * size
                right = generator.random() < 0.8
                add(image, moved.tolist(), label if right else int(generator.choice(present)))
        for _ in range(generator.integers(0, 20)):
            y, x = generator.uniform(0, 400, 2)
            height, width = generator.exponential(60, 2) + 1
            add(image, (y, x, y + height, x + width), int(generator.choice(present)))
    return rows


def pycocotools_results(split: Split, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Convert detections to COCO's result format, in the same order."""
    results = []
    for image, x1, y1, x2, y2, score, label in rows:
        if np.float32(score) < np.float32(MIN_SCORE):
            continue
        left, top, right, bottom = np.array([x1, y1, x2, y2], dtype=np.float32)
        results.append(
            {
                "image_id": image,
                "category_id": split.categories.category_of(label),
                "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
                "score": float(np.float32(score)),
            }
        )
    return results


def pycocotools_metrics(
    split: Split, results: Sequence[dict[str, Any]] | Path
) -> tuple[NDArray[np.float64], list[float]]:
    """Compute pycocotools' 12 metrics, and the AP of each category in order of ids."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(split.annotation_file))
        if isinstance(results, Path) or results:
            detections = truth.loadRes(str(results) if isinstance(results, Path) else list(results))
        else:  # loadRes fails on an empty list
            detections = COCO()
            detections.dataset = {**truth.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.params.imgIds = split.image_ids.tolist()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, 2]
    by_class = [precision[:, :, k] for k in range(precision.shape[2])]
    return evaluation.stats, [
        float(each[each > -1].mean()) if (each > -1).any() else -1.0 for each in by_class
    ]
