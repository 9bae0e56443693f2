"""Detections collected batch by batch, gathered over the ranks, and written as COCO results."""

from collections.abc import Iterator
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

# Rows under this score are padding or noise: the limit of the reference implementation. It keeps
# the zero-padded rows of `model.detect` out.
MIN_SCORE = 0.001

_ROWS_PER_WRITE = 20_000


@dataclass(frozen=True)
class Detections:
    """Every rank's detections, ordered by image id and within an image as the detector gave them.

    The order decides between equal scores in the metrics, so it depends on nothing but the images.
    """

    evaluated: npt.NDArray[np.int64]
    """(I,) ids of all images that were evaluated, ascending, those without detections included."""
    image_ids: npt.NDArray[np.int64]
    """(D,) the image of each detection, ascending."""
    boxes: npt.NDArray[np.float64]
    """(D, 4) x, y, width, height in pixels of the source image."""
    scores: npt.NDArray[np.float64]
    """(D,) in 0..1."""
    category_ids: npt.NDArray[np.int64]
    """(D,) category ids of the annotation file."""

    def __len__(self) -> int:
        return len(self.scores)


class DetectionTable:
    """Collects detections of this rank; `gather` makes one table of all ranks' detections."""

    def __init__(self) -> None:
        self._image_ids: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._row_counts: list[Tensor] = []

    def add(self, image_ids: Tensor, detections: Tensor) -> None:
        """Add a batch, dropping detections that score less than `MIN_SCORE`.

        Args:
            image_ids: (N,) ids of the images, each added once over all batches and ranks.
            detections: (N, K, 6) rows x1, y1, x2, y2, score, label (1-based) in source pixels.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if detections.ndim != 3 or detections.shape[2] != 6:
            raise ValueError(f"detections must be (N, K, 6), not {tuple(detections.shape)}")
        if image_ids.shape != detections.shape[:1]:
            raise ValueError(
                f"{tuple(image_ids.shape)} image ids do not fit detections of shape "
                f"{tuple(detections.shape)}"
            )
        detections = detections.detach().float()
        kept = detections[..., 4] >= MIN_SCORE
        self._image_ids.append(image_ids.to(detections.device, torch.int64))
        self._rows.append(detections[kept])
        self._row_counts.append(kept.sum(dim=1))

    def gather(self, communicator: Communicator, categories: Categories) -> Detections:
        """Gather the detections of all ranks; every rank must call it and gets the same table.

        A rank may have added nothing. Labels that stand for no category (COCO's ids have gaps,
        which a detector with one class for each id can still predict) are left out: no ground truth
        can match them and no metric counts them.

        Raises:
            ValueError: an image was added more than once, which would count its detections twice;
                or a label is not in 1..num_classes.
        """
        image_ids, counts, rows = (
            torch.cat(communicator.all_gather(column)).cpu().numpy() for column in self._columns()
        )
        unique, times = np.unique(image_ids, return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"{int((times > 1).sum())} image(s) were evaluated more than once, the first of "
                f"them image {unique[times > 1][0]}: each image must be in one batch of one rank"
            )
        labels = rows[:, 5].astype(np.int64)
        category_ids = _category_ids(labels, categories)
        row_image_ids = np.repeat(image_ids, counts)
        # Stable: detections of an image keep the detector's order.
        order = np.argsort(row_image_ids, kind="stable")
        order = order[categories.known(category_ids)[order]]
        # The width is taken in float32, as the reference implementation does.
        boxes = np.concatenate([rows[order, :2], rows[order, 2:4] - rows[order, :2]], axis=1)
        return Detections(
            evaluated=unique,
            image_ids=row_image_ids[order],
            boxes=boxes.astype(np.float64),
            scores=rows[order, 4].astype(np.float64),
            category_ids=category_ids[order],
        )

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image ids (N,), detections of each image (N,), rows (D, 6).

        On the CPU, so that a rank without images sends what the others send; a communicator moves
        tensors to where its collectives need them.
        """
        image_ids = [torch.empty(0, dtype=torch.int64), *self._image_ids]
        counts = [torch.empty(0, dtype=torch.int64), *self._row_counts]
        rows = [torch.empty(0, 6), *self._rows]
        return _cat_on_cpu(image_ids), _cat_on_cpu(counts), _cat_on_cpu(rows)


def _cat_on_cpu(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts])


def _category_ids(labels: npt.NDArray[np.int64], categories: Categories) -> npt.NDArray[np.int64]:
    wrong = (labels < 1) | (labels > categories.num_classes)
    if wrong.any():
        raise ValueError(
            f"a detection has the label {labels[wrong][0]} where the data set has the labels 1 to "
            f"{categories.num_classes}: the detector was made for other classes"
        )
    return categories.categories_of(labels)


def write_coco_results(path: Path, detections: Detections) -> None:
    """Write detections in COCO's result format, which pycocotools' `loadRes` reads.

    Numbers are written with all their digits, so that the file gives exactly the metrics that the
    table gave. The file is complete or absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for piece in _json_pieces(detections):
            file.write(piece)


def _json_pieces(detections: Detections) -> Iterator[bytes]:
    """The bytes of a JSON array, in pieces.

    Half a million rows as Python objects all at once would take a gigabyte.
    """
    separator = b"["
    for start in range(0, len(detections), _ROWS_PER_WRITE):
        part = slice(start, start + _ROWS_PER_WRITE)
        rows = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
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
