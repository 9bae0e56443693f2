"""Generated annotations and detections of COCO val2017's size, to compute metrics for."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from bench.measuring import Settings
from cocodata import DatasetFolder

SPLIT = "val2017"
_CLASSES = 80
_BOXES_PER_IMAGE = 7.2  # 36,000 in 5,000 images
_DETECTIONS_PER_IMAGE = 100
_WIDTH, _HEIGHT = 640.0, 480.0

FloatArray = npt.NDArray[np.float64]


def result_folder(settings: Settings) -> Path:
    """Return the folder of the generated data set and detections."""
    return settings.scratch / "coco-result"


def load_result(settings: Settings) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Load image ids, (I,), and detections x1 y1 x2 y2 score label, (I, 100, 6)."""
    folder = result_folder(settings)
    return np.load(folder / "image_ids.npy"), np.load(folder / "detections.npy")


def prepare_result(settings: Settings) -> None:
    """Write annotations in COCO's format, and detections, a fifth of which are near a box.

    Those near a box tend to score higher, as with a mediocre detector. One box in a hundred is a
    crowd.
    """
    rng = np.random.default_rng(settings.seed)
    images = settings.coco_images
    image_ids = np.sort(rng.choice(600_000, images, replace=False)) + 1
    total = round(images * _BOXES_PER_IMAGE)
    owner = np.sort(rng.integers(images, size=total))
    boxes = _boxes(rng, total)
    labels = _labels(rng, total)

    folder = result_folder(settings)
    annotation_file = DatasetFolder(folder).annotation_file(SPLIT)
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    annotations = {
        "images": [
            {"id": number, "file_name": f"{number:012}.jpg", "width": _WIDTH, "height": _HEIGHT}
            for number in image_ids.tolist()
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, _CLASSES + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": 0.6 * box[2] * box[3],  # a typical object covers that much of its box
                "iscrowd": crowd,
            }
            for number, (image, label, box, crowd) in enumerate(
                zip(
                    image_ids[owner].tolist(),
                    labels.tolist(),
                    boxes.tolist(),
                    (rng.random(total) < 0.01).astype(int).tolist(),
                    strict=True,
                ),
                start=1,
            )
        ],
    }
    annotation_file.write_bytes(orjson.dumps(annotations))
    np.save(folder / "image_ids.npy", image_ids)
    np.save(folder / "detections.npy", _detections(rng, images, owner, boxes, labels))


def _detections(
    rng: np.random.Generator,
    images: int,
    owner: npt.NDArray[np.int64],
    boxes: FloatArray,
    labels: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Generate detections, (I, 100, 6), best first: three shifted copies of each box, and noise."""
    rows = np.empty((images, _DETECTIONS_PER_IMAGE, 6))
    noise = images * _DETECTIONS_PER_IMAGE
    rows[..., :4] = _boxes(rng, noise).reshape(images, _DETECTIONS_PER_IMAGE, 4)
    rows[..., 4] = 0.3 * rng.beta(1, 4, (images, _DETECTIONS_PER_IMAGE)) + 0.002
    rows[..., 5] = _labels(rng, noise).reshape(images, _DETECTIONS_PER_IMAGE)

    copies = 3
    starts = np.searchsorted(owner, owner)  # index of the first box of each box's image
    position = np.arange(len(owner)) - starts
    for copy in range(copies):
        column = copies * position + copy
        fits = column < _DETECTIONS_PER_IMAGE
        size = np.tile(boxes[fits, 2:], 2)
        moved = boxes[fits] + rng.normal(0, 0.12, size.shape) * size
        moved[:, 2:] = np.maximum(moved[:, 2:], 1.0)
        image = owner[fits]
        rows[image, column[fits], :4] = moved
        rows[image, column[fits], 4] = rng.beta(2, 2, fits.sum())
        rows[image, column[fits], 5] = labels[fits]

    rows[..., 2:4] += rows[..., :2]  # width and height to x2 and y2
    order = np.argsort(-rows[..., 4], axis=1)
    return np.take_along_axis(rows, order[..., None], axis=1).astype(np.float32)


def _boxes(rng: np.random.Generator, count: int) -> FloatArray:
    """Generate boxes x y width height, (count, 4), with log-uniform sides."""
    limit = np.array([_WIDTH, _HEIGHT])
    sides = limit * np.exp(rng.uniform(np.log(0.02), 0.0, (count, 2)))
    corner = (limit - sides) * rng.random((count, 2))
    return np.concatenate([corner, sides], axis=1).round(2)


def _labels(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Generate labels as unbalanced as COCO's, where one class has a third of all boxes."""
    share = 1.0 / np.arange(1, _CLASSES + 1)
    return rng.choice(_CLASSES, count, p=share / share.sum()) + 1
