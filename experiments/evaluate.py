#!/usr/bin/env python3
"""Evaluate a detector on a data set: COCO metrics, AP per class, and its detections as a file."""

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

# The packages are not installed; make them importable when this file is run as a script.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data-prep")]

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from cocodata import DatasetError, load_split, splits  # noqa: E402
from cocodata.files import write_atomically  # noqa: E402
from experiments.checkpoints.contents import CheckpointError  # noqa: E402
from experiments.checkpoints.detectors import trained_categories  # noqa: E402
from experiments.evaluation import write_coco_results  # noqa: E402
from experiments.evaluation.inference import (  # noqa: E402
    evaluation_input,
    open_detector,
    resolve_checkpoint,
    with_progress,
)
from experiments.evaluation.loop import evaluate_detector  # noqa: E402
from experiments.evaluation.options import (  # noqa: E402
    BatchSize,
    Checkpoint,
    Device,
    Model,
    NumClasses,
    Threads,
)
from experiments.evaluation.report import sample_pictures, save_image  # noqa: E402
from experiments.input import SampleError  # noqa: E402
from reporting.progress import print_error  # noqa: E402
from reporting.tables import class_table, format_metric, metrics_table  # noqa: E402


def evaluate(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    split_name: str | None,
    model: str | None,
    num_classes: int | None,
    device: str,
    batch_size: int,
    threads: int | None,
) -> None:
    """Evaluate, print the metrics, and write detections.json, metrics.json and detections.png."""
    from experiments.evaluation.drawing import contact_sheet

    split = load_split(data, split_name or splits(data)[1])
    detector = open_detector(
        checkpoint, model=model, num_classes=num_classes, device=device, threads=threads
    )
    trained = trained_categories(resolve_checkpoint(checkpoint))
    if trained is not None:
        split = split.labelled_as(trained, f"the checkpoint {checkpoint}")
    where = next(detector.parameters()).device
    console = Console()
    console.print(
        f"{detector.config.name} on {len(split)} images of {data / split.name}", highlight=False
    )
    started = time.monotonic()
    evaluation = evaluate_detector(
        detector,
        split,
        evaluation_input(detector.config, device=where, threads=threads),
        batch_size=batch_size,
        progress=with_progress,
    )
    seconds = time.monotonic() - started
    result = evaluation.result
    console.print(metrics_table(result.metrics))
    console.print(class_table(result.ap_per_class))
    out.mkdir(parents=True, exist_ok=True)
    write_coco_results(
        out / "detections.json", evaluation.detections, original_ids=split.original_ids
    )
    content = {
        "checkpoint": str(checkpoint),
        "model": detector.config.name,
        "image_size": list(detector.config.image_size),
        "data": str(data),
        "split": split.name,
        "seconds": seconds,
        "images_per_second": len(split) / seconds,
        **result.as_dict(),
        "losses": evaluation.losses,
    }
    write_atomically(out / "metrics.json", json.dumps(content, indent=1) + "\n")
    pictures = sample_pictures(split, evaluation.detections)
    save_image(contact_sheet(pictures, split.categories.name_of), out / "detections.png")
    console.print(
        f"AP {format_metric(result.metrics['AP'])}, {len(split) / seconds:.1f} images/s, "
        f"{result.num_detections} detections; results in {out}",
        highlight=False,
        soft_wrap=True,
    )


def main(
    *,
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option(help="Data set folder in COCO's layout.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: runs/evaluate/<time>.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate; default: the validation split.")
    ] = None,
    model: Model = None,
    num_classes: NumClasses = None,
    device: Device = "auto",
    batch_size: BatchSize = 8,
    threads: Threads = None,
) -> None:
    """Print the COCO metrics of a checkpoint on a data set, and write its detections."""
    out = out or Path("runs/evaluate") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    try:
        evaluate(
            checkpoint,
            data,
            out,
            split_name=split,
            model=model,
            num_classes=num_classes,
            device=device,
            batch_size=batch_size,
            threads=threads,
        )
    except (CheckpointError, DatasetError, SampleError, OSError, ValueError) as error:
        print_error(str(error))
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
