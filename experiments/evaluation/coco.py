"""COCO's detection metrics, computed from arrays by hotcoco, which is written in Rust.

Its precision and recall arrays equal those of pycocotools bit for bit, which the tests verify.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt

from cocodata import Split
from cocodata.format.annotations import read_annotations
from experiments.evaluation.detections import Detections
from reporting.coco_metrics import METRICS

# Indices into pycocotools' arrays: IoU thresholds .5, .55, ... .95; areas all, small, medium,
# large; and at most 1, 10, 100 detections per class and image.
_AP50, _AP75 = 0, 5
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
_MAX_DETECTIONS = {"1": 0, "10": 1, "100": 2}


@dataclass(frozen=True)
class CocoResult:
    """The metrics of one evaluation. A value is -1 if there are no annotations to compute it."""

    metrics: dict[str, float]
    """The 12 metrics, named and ordered as in `METRICS`."""
    ap_per_class: dict[str, float]
    """AP by category name, in the order of category ids."""
    num_images: int
    num_detections: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary for JSON."""
        return asdict(self)


class CocoGroundTruth:
    """A split's annotations for COCO's metrics, with crowds and segment areas.

    They are read from the annotation file, since `Split` has only what training needs, for the
    split's images.
    """

    def __init__(self, split: Split) -> None:
        """Read the split's annotation file.

        Raises:
            DatasetError: It is missing or is not in COCO's format.
        """
        self.name = split.name
        self.image_ids = np.asarray(split.image_ids, dtype=np.int64)
        self.category_ids = np.sort(np.asarray(split.categories.ids, dtype=np.int64))
        names = dict(zip(split.categories.ids, split.categories.names, strict=True))
        self.class_names = _unique_names([(int(each), names[each]) for each in self.category_ids])
        annotations = read_annotations(split.annotation_file, split.image_dir)
        boxes = annotations.boxes
        image_ids, category_ids = annotations.box_image_ids, annotations.box_category_ids
        area = np.where(np.isnan(annotations.areas), boxes[:, 2] * boxes[:, 3], annotations.areas)
        kept = np.isin(image_ids, self.image_ids) & np.isin(category_ids, self.category_ids)
        self._coco = hotcoco.COCO.from_arrays(
            # The metrics ignore image sizes. Images are identified by index, since hotcoco stores
            # ids in float64, which cannot represent large ones.
            images=[{"id": index, "width": 0, "height": 0} for index in range(len(self.image_ids))],
            categories=[
                {"id": int(each), "name": name}
                for each, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            image_ids=np.searchsorted(self.image_ids, image_ids[kept]),
            category_ids=category_ids[kept],
            boxes=boxes[kept],
            area=area[kept],
            iscrowd=annotations.crowds[kept],
        )


def coco_metrics(ground_truth: CocoGroundTruth, detections: Detections) -> CocoResult:
    """Compute COCO's 12 metrics and the AP of each class.

    Raises:
        ValueError: The evaluated images are not those of the ground truth. The annotations of an
            image that no rank evaluated would count as missed.
    """
    _require_all_images(ground_truth, detections)
    columns = np.column_stack(
        [
            np.searchsorted(ground_truth.image_ids, detections.image_ids),
            detections.boxes,
            detections.scores,
            detections.category_ids,
        ]
    )
    truth = ground_truth._coco
    evaluation = hotcoco.COCOeval(truth, truth.load_res(columns), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # precision: (IoU thresholds, recall thresholds, classes, areas, maximum detections).
    # recall: the same without recall thresholds.
    arrays = evaluation.eval
    assert arrays is not None
    precision, recall = arrays["precision"], arrays["recall"]
    return CocoResult(
        metrics=_summary(precision, recall),
        ap_per_class={
            name: _mean(precision[:, :, index, _AREAS[""], _MAX_DETECTIONS["100"]])
            for index, name in enumerate(ground_truth.class_names)
        },
        num_images=len(detections.evaluated),
        num_detections=len(detections),
    )


def _summary(
    precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Compute the 12 metrics from pycocotools' `precision` and `recall` arrays."""
    last = _MAX_DETECTIONS["100"]
    all_areas = precision[..., _AREAS[""], last]
    values = {"AP": all_areas, "AP50": all_areas[_AP50], "AP75": all_areas[_AP75]}
    values |= {f"AP{area}": precision[..., _AREAS[area], last] for area in "sml"}
    values |= {f"AR{k}": recall[..., _AREAS[""], index] for k, index in _MAX_DETECTIONS.items()}
    values |= {f"AR{area}": recall[..., _AREAS[area], last] for area in "sml"}
    return {name: _mean(values[name]) for name in METRICS}


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of the defined values, or -1 if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _require_all_images(ground_truth: CocoGroundTruth, detections: Detections) -> None:
    missing = np.setdiff1d(ground_truth.image_ids, detections.evaluated)
    unknown = np.setdiff1d(detections.evaluated, ground_truth.image_ids)
    if missing.size:
        raise ValueError(
            f"{missing.size} of the {len(ground_truth.image_ids)} images of {ground_truth.name} "
            f"were not evaluated, such as image {missing[0]}"
        )
    if unknown.size:
        raise ValueError(
            f"{unknown.size} evaluated image(s) are not in {ground_truth.name}, such as image "
            f"{unknown[0]}: the detections belong to another split or data set"
        )


def _unique_names(categories: list[tuple[int, str]]) -> list[str]:
    """Return the names, with the id appended to names that several categories share."""
    counts = Counter(name for _, name in categories)
    return [name if counts[name] == 1 else f"{name} ({key})" for key, name in categories]
