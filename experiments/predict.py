#!/usr/bin/env python3
"""Draw a detector's detections on pictures, and write them as JSON."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

# The packages are not installed; make them importable when this file is run as a script.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data-prep")]

import numpy as np  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from cocodata import Categories, DatasetError, Split, load_split, splits, text  # noqa: E402
from cocodata.files import write_atomically  # noqa: E402
from experiments.checkpoints.contents import CheckpointError  # noqa: E402
from experiments.checkpoints.detectors import trained_categories  # noqa: E402
from experiments.evaluation import Detections, DetectionTable  # noqa: E402
from experiments.evaluation.drawing import draw_detections  # noqa: E402
from experiments.evaluation.inference import (  # noqa: E402
    evaluation_input,
    open_detector,
    resolve_checkpoint,
    with_progress,
)
from experiments.evaluation.loop import detect_batch  # noqa: E402
from experiments.evaluation.options import (  # noqa: E402
    BatchSize,
    Checkpoint,
    Device,
    Model,
    NumClasses,
    Threads,
)
from experiments.evaluation.pictures import (  # noqa: E402
    Pictures,
    find_pictures,
    open_picture,
    output_names,
    read_pictures,
    require_other_folder,
)
from experiments.evaluation.report import save_image  # noqa: E402
from experiments.input import EvalLoader, SampleError  # noqa: E402
from experiments.runtime.communication import SingleProcess  # noqa: E402
from model import EfficientDet, Postprocessor  # noqa: E402
from reporting.progress import print_error  # noqa: E402

_COCO_CLASSES = 90


def class_categories(
    num_classes: int, data: Path | None, trained: Categories | None = None
) -> Categories:
    """Return the names of a detector's classes.

    They are those of the data set if one is given, else those that it was trained on if known, else
    COCO's for 90 classes, else numbers.

    Raises:
        ValueError: The data set has another number of classes.
        DatasetError: The data set has other classes than the detector was trained on.
    """
    if data is not None:
        split = load_split(data, splits(data)[1])
        if trained is not None:
            # The names may be written differently; what the detector knows beyond them stays.
            split.labelled_as(trained, "the checkpoint")
            return trained
        trained = split.categories
        if trained.num_classes != num_classes:
            raise ValueError(
                f"the detector has {num_classes} classes, but {data} has {trained.num_classes}: "
                "the detector was trained on another data set"
            )
    if trained is not None:
        return trained
    names = [f"class {label}" for label in range(1, num_classes + 1)]
    if num_classes == _COCO_CLASSES:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        known = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1 : num_classes + 1]
        names = [
            known if known != "N/A" else name for known, name in zip(known, names, strict=True)
        ]
    return Categories(ids=tuple(range(1, num_classes + 1)), names=tuple(names))


def detect_split(
    detector: EfficientDet, split: Split, *, batch_size: int, threads: int | None
) -> Detections:
    """Return a detector's detections in the images of a split."""
    config = detector.config
    device = next(detector.parameters()).device
    postprocessor = Postprocessor(config).to(device)
    table = DetectionTable()
    with EvalLoader(
        split, evaluation_input(config, device=device, threads=threads), batch_size=batch_size
    ) as loader:
        for batch in with_progress(loader, len(loader)):
            _, batch_detections = detect_batch(detector, postprocessor, batch)
            table.add(batch["image_id"], batch_detections)
    return table.gather(SingleProcess(), split.categories)


def write_predictions(
    pictures: Pictures,
    names: Mapping[Path, Path],
    detections: Detections,
    out: Path,
    *,
    min_score: float,
) -> int:
    """Write each picture with its detections drawn on it, and detections.json.

    Args:
        pictures: The pictures.
        names: The name of each file's drawn picture, in the folder `out`.
        detections: The detections in all pictures.
        out: The folder for the results.
        min_score: Detections with lower scores are left out.

    Returns:
        The number of detections.
    """
    out.mkdir(parents=True, exist_ok=True)
    categories = pictures.split.categories
    listing: list[dict[str, Any]] = []
    for image_id, file in zip(pictures.split.image_ids, pictures.files, strict=True):
        rows = np.flatnonzero((detections.image_ids == image_id) & (detections.scores >= min_score))
        boxes = detections.boxes[rows].copy()
        boxes[:, 2:] += boxes[:, :2]
        labels = categories.labels_of(detections.category_ids[rows])
        scores = detections.scores[rows]
        image = open_picture(file)
        target = out / names[file]
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(draw_detections(image, boxes, labels, scores, categories.name_of), target)
        listing.append(
            {
                "file": str(file),
                "drawn": names[file].as_posix(),
                "width": image.width,
                "height": image.height,
                "detections": [
                    {"class": categories.name_of(label), "label": label, "score": score, "box": box}
                    for label, score, box in zip(
                        labels.tolist(), scores.tolist(), boxes.tolist(), strict=True
                    )
                ],
            }
        )
    write_atomically(out / "detections.json", json.dumps(listing, indent=1) + "\n")
    return sum(len(each["detections"]) for each in listing)


def main(
    *,
    checkpoint: Checkpoint,
    images: Annotated[
        str, typer.Option(help="A picture, a folder with pictures and folders, or a glob pattern.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the drawn pictures.")] = Path(
        "runs/predict"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Data set to take the class names from.")
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Minimum score of detections.")] = 0.3,
    model: Model = None,
    num_classes: NumClasses = None,
    device: Device = "auto",
    batch_size: BatchSize = 8,
    threads: Threads = None,
) -> None:
    """Draw a checkpoint's detections on pictures of any size, and write them as JSON."""
    try:
        found = find_pictures(images, leave_out=out)
        names = output_names(found.files)
        require_other_folder(found.files, names, out)
        detector = open_detector(
            checkpoint, model=model, num_classes=num_classes, device=device, threads=threads
        )
        trained = trained_categories(resolve_checkpoint(checkpoint))
        categories = class_categories(detector.config.num_classes, data, trained)
        with tempfile.TemporaryDirectory() as scratch:
            pictures = read_pictures(found.files, Path(scratch), categories)
            if not pictures.files:
                raise ValueError("\n".join(pictures.unreadable.values()))
            detections = detect_split(
                detector, pictures.split, batch_size=batch_size, threads=threads
            )
            drawn = dict(zip(found.files, names, strict=True))
            count = write_predictions(pictures, drawn, detections, out, min_score=score)
    except (CheckpointError, DatasetError, SampleError, OSError, ValueError) as error:
        print_error(str(error))
        raise typer.Exit(1) from error
    Console().print(
        f"{count} detections in {len(pictures.files)} pictures; results in {out}",
        highlight=False,
        soft_wrap=True,
    )
    if found.others:
        print(f"{text.count(found.others, 'other file')} passed over: not named as pictures are")
    for reason in pictures.unreadable.values():
        print_error(f"skipped: {reason}")
    if pictures.unreadable:
        unreadable = text.count(len(pictures.unreadable), "picture")
        print_error(f"{unreadable} of {len(found.files)} could not be read")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
