"""Collects detections by batch, gathers them over the ranks, and writes them as COCO results."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import torch
from torch import Tensor

from cocodata import Categories
from cocodata.files import atomic_path
from experiments.runtime.communication import Communicator

# The reference implementation's threshold. It also excludes the postprocessor's zero padding.
MIN_SCORE = 0.001

_ROWS_PER_WRITE = 20_000


@dataclass(frozen=True)
class Detections:
    """The detections of all ranks, ordered by image id and then in the detector's order.

    The metrics depend on the order of equal scores, so it must not depend on ranks and batches.
    """

    evaluated: npt.NDArray[np.int64]
    """(I,) ids of all evaluated images, including those without detections, ascending."""
    image_ids: npt.NDArray[np.int64]
    """(D,) image id of each detection, ascending."""
    boxes: npt.NDArray[np.float64]
    """(D, 4) x, y, width, height in pixels of the source image."""
    scores: npt.NDArray[np.float64]
    """(D,) from 0 to 1."""
    category_ids: npt.NDArray[np.int64]
    """(D,) category ids, as in the annotation file."""

    def __len__(self) -> int:
        return len(self.scores)


class DetectionTable:
    """Collects this rank's detections; `gather` combines those of all ranks."""

    def __init__(self) -> None:
        self._image_ids: list[Tensor] = []
        self._detections: list[Tensor] = []

    def add(self, image_ids: Tensor, detections: Tensor) -> None:
        """Add a batch; detections that score less than `MIN_SCORE` are dropped.

        On a GPU they stay there for now: how many there are is only known once it has got so far.

        Args:
            image_ids: (N,) ids of the images, on the CPU; each may be added only once over all
                ranks.
            detections: (N, K, 6) rows x1, y1, x2, y2, score, label (from 1), in source pixels.

        Raises:
            ValueError: The shapes do not match.
        """
        if detections.ndim != 3 or detections.shape[2] != 6:
            raise ValueError(f"detections must be (N, K, 6), not {tuple(detections.shape)}")
        if image_ids.shape != detections.shape[:1]:
            raise ValueError(
                f"image ids of shape {tuple(image_ids.shape)} do not match detections of shape "
                f"{tuple(detections.shape)}"
            )
        self._image_ids.append(image_ids.to(torch.int64, copy=True))
        self._detections.append(detections.detach().to(torch.float32, copy=True))

    def gather(self, communicator: Communicator, categories: Categories) -> Detections:
        """Gather the detections of all ranks; all ranks must call this and get the same result.

        A rank may have added nothing. Labels without a category are dropped, since no metric counts
        them: COCO's category ids have gaps, but a detector has a class for each id.

        Raises:
            ValueError: An image was added more than once, or a label is not in 1..num_classes.
        """
        image_ids, counts, rows = (
            torch.cat(communicator.all_gather(column)).cpu().numpy() for column in self._columns()
        )
        unique, occurrences = np.unique(image_ids, return_counts=True)
        repeated = unique[occurrences > 1]
        if repeated.size:
            raise ValueError(
                f"{repeated.size} image(s) were evaluated more than once, such as image "
                f"{repeated[0]}: each image must be in exactly one batch of one rank"
            )
        labels = rows[:, 5].astype(np.int64)
        category_ids = _category_ids(labels, categories)
        row_image_ids = np.repeat(image_ids, counts)
        # Stable, to keep the detector's order within an image.
        order = np.argsort(row_image_ids, kind="stable")
        order = order[categories.known(category_ids)[order]]
        # Width and height are computed in float32, as in the reference implementation.
        boxes = np.concatenate([rows[order, :2], rows[order, 2:4] - rows[order, :2]], axis=1)
        return Detections(
            evaluated=unique,
            image_ids=row_image_ids[order],
            boxes=boxes.astype(np.float64),
            scores=rows[order, 4].astype(np.float64),
            category_ids=category_ids[order],
        )

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return image ids (N,), numbers of detections (N,) and rows (D, 6).

        They are on the CPU, so that all ranks agree even if one has no images; the communicator
        moves them to its collectives' device.
        """
        image_ids = [torch.empty(0, dtype=torch.int64), *self._image_ids]
        counts, rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 6)]
        for detections in self._detections:
            on_cpu = detections.cpu()
            kept = on_cpu[..., 4] >= MIN_SCORE
            rows.append(on_cpu[kept])
            counts.append(kept.sum(dim=1))
        return torch.cat(image_ids), torch.cat(counts), torch.cat(rows)


def _category_ids(labels: npt.NDArray[np.int64], categories: Categories) -> npt.NDArray[np.int64]:
    invalid = (labels < 1) | (labels > categories.num_classes)
    if invalid.any():
        raise ValueError(
            f"a detection has label {labels[invalid][0]}, but the data set has labels 1 to "
            f"{categories.num_classes}: the detector was trained on other classes"
        )
    return categories.categories_of(labels)


def write_coco_results(
    path: Path, detections: Detections, original_ids: Mapping[int, int | str] | None = None
) -> None:
    """Write detections in COCO's result format, which pycocotools' `loadRes` reads, atomically.

    Numbers have full precision, so that the metrics of the file are exactly those of the table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for chunk in _json_chunks(detections, original_ids or {}):
            file.write(chunk)


def _json_chunks(detections: Detections, original_ids: Mapping[int, int | str]) -> Iterator[bytes]:
    """Yield a JSON array in chunks; half a million rows as Python objects would need a gigabyte."""
    # Integers of more than 64 bits are written as their digits.
    in_file = {
        number: orjson.Fragment(str(each)) if isinstance(each, int) else each
        for number, each in original_ids.items()
    }
    separator = b"["
    for start in range(0, len(detections), _ROWS_PER_WRITE):
        part = slice(start, start + _ROWS_PER_WRITE)
        rows = [
            {
                "image_id": in_file.get(image, image),
                "category_id": category,
                "bbox": box,
                "score": score,
            }
            for image, category, box, score in zip(
                detections.image_ids[part].tolist(),
                detections.category_ids[part].tolist(),
                detections.boxes[part].tolist(),
                detections.scores[part].tolist(),
                strict=True,
            )
        ]
        yield separator
        yield orjson.dumps(rows)[1:-1]
        separator = b",\n"
    yield b"[]\n" if separator == b"[" else b"]\n"
