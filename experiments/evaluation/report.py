"""Writes the report of a run without a cluster."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cocodata import Split
from cocodata.files import atomic_path, write_atomically
from cocodata.text import duration
from experiments.evaluation.detections import Detections
from experiments.evaluation.drawing import DrawnImage, contact_sheet
from experiments.evaluation.pictures import to_rgb
from reporting.coco_metrics import MEANINGS, METRICS
from reporting.plots import plot_average_precision, plot_losses, save_figure
from reporting.records import RunRecord, read_record
from reporting.tables import class_rows, format_metric, markdown_table

_LOSSES = {"loss": "total", "class_loss": "class", "box_loss": "box"}
_MIN_DRAWN_SCORE = 0.3


def write_report(
    run: Path,
    *,
    pictures: Sequence[DrawnImage] = (),
    names: Callable[[int], str] = "class {}".format,
) -> Path:
    """Write the folder report/ of a run from its metrics.

    It contains README.md with metrics, settings and versions; loss and AP curves as PNG and SVG;
    and detections.png if there are pictures. Settings, versions and time are from run.json and
    summary.json, if these exist.

    Args:
        run: The run's folder, with metrics.jsonl.
        pictures: Images with detections, such as from `sample_pictures`.
        names: Returns the name of a label.

    Returns:
        The path of the report's README.md.

    Raises:
        FileNotFoundError: metrics.jsonl is missing.
        ValueError: It has no evaluation yet.
    """
    record = read_record(run / "metrics.jsonl")
    if not record.validation:
        raise ValueError(
            f"{run / 'metrics.jsonl'}: no evaluation in it yet; the report needs at least one"
        )
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    save_figure(loss_figure(record), folder / "loss")
    save_figure(ap_figure(record), folder / "ap")
    if pictures:
        save_image(contact_sheet(pictures, names), folder / "detections.png")
    text = _readme(run.name, record, _settings(run), with_pictures=bool(pictures))
    readme = folder / "README.md"
    write_atomically(readme, text)
    return readme


def loss_figure(record: RunRecord) -> Figure:
    """Plot the losses of training and validation over batches."""
    training = {
        name: record.series("training", key, against="batches") for key, name in _LOSSES.items()
    }
    validation = {
        name: record.series("validation", f"val_{key}", against="batches")
        for key, name in _LOSSES.items()
    }
    return plot_losses(
        {name: series for name, series in training.items() if series[0]},
        {name: series for name, series in validation.items() if series[0]},
    )


def ap_figure(record: RunRecord) -> Figure:
    """Plot AP and AP50 over epochs."""
    return plot_average_precision(
        {name: record.series("validation", name, against="epochs") for name in ("AP50", "AP")}
    )


def sample_pictures(
    split: Split,
    detections: Detections,
    *,
    count: int = 8,
    min_score: float = _MIN_DRAWN_SCORE,
) -> list[DrawnImage]:
    """Load evenly spaced images of a split, with their detections and ground truth.

    Args:
        split: The images.
        detections: The split's detections.
        count: Maximum number of images.
        min_score: Detections with lower scores are left out.
    """
    pictures = []
    for index in np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int):
        rows = np.flatnonzero(
            (detections.image_ids == split.image_ids[index]) & (detections.scores >= min_score)
        )
        boxes = detections.boxes[rows].copy()
        boxes[:, 2:] += boxes[:, :2]
        with Image.open(split.image_dir / split.file_names[index]) as image:
            pictures.append(
                DrawnImage(
                    image=to_rgb(image),
                    boxes=boxes,
                    labels=split.categories.labels_of(detections.category_ids[rows]),
                    scores=detections.scores[rows],
                    truth_boxes=split.targets(int(index))[0][:, [1, 0, 3, 2]],
                )
            )
    return pictures


def save_image(image: Image.Image, file: Path) -> None:
    """Write an image, atomically."""
    with atomic_path(file) as temporary:
        image.save(temporary)


def _settings(run: Path) -> dict[str, Any]:
    """Read run.json and summary.json."""
    content: dict[str, Any] = {}
    for name in ("run.json", "summary.json"):
        if (run / name).is_file():
            content |= json.loads((run / name).read_text(encoding="utf-8"))
    return content


def _readme(
    name: str, record: RunRecord, settings: Mapping[str, Any], *, with_pictures: bool
) -> str:
    last = record.validation[-1]
    best = max(record.validation, key=lambda report: report["AP"])
    parts = [
        f"# Run {name}\n",
        f"AP **{format_metric(last['AP'])}**, AP50 **{format_metric(last['AP50'])}** after "
        f"{last['epochs']:.4g} epochs ({last['batches']} batches)."
        + (
            f" Best AP {format_metric(best['AP'])} after {best['epochs']:.4g} epochs."
            if best["AP"] > last["AP"]
            else ""
        )
        + "\n",
        "![AP and AP50 against epochs](ap.png)\n",
        "![Losses against batches](loss.png)\n",
    ]
    if with_pictures:
        parts.append("![Detections on validation images](detections.png)\n")
    rows = [[metric, format_metric(last[metric]), MEANINGS[metric]] for metric in METRICS]
    parts += ["## Metrics\n", markdown_table(["metric", "value", "meaning"], rows)]
    if last.get("ap_per_class"):
        table = class_rows(last["ap_per_class"], columns=4 if len(last["ap_per_class"]) > 12 else 1)
        header = ["class", "AP"] * (len(table[0]) // 2)
        parts += ["## AP per class\n", markdown_table(header, table)]
    parts += ["## The run\n", markdown_table(["", ""], _facts(record, settings))]
    if settings.get("identity"):
        rows = [[key, _cell(value)] for key, value in settings["identity"].items()]
        parts += ["## Settings\n", markdown_table(["setting", "value"], rows)]
    if settings.get("versions"):
        rows = [[key, _cell(value)] for key, value in settings["versions"].items()]
        parts += ["## Versions\n", markdown_table(["package", "version"], rows)]
    return "\n".join(parts)


def _facts(record: RunRecord, settings: Mapping[str, Any]) -> list[list[str]]:
    """Return rows with the time, speed and provenance of a run, as far as they are known."""
    last = record.validation[-1]
    rows = [["batches", str(last["batches"])], ["epochs", f"{last['epochs']:.4g}"]]
    if "seconds" in settings:
        rows.append(["time", duration(settings["seconds"])])
    elif record.seconds > 0:
        rows.append(["time from the first report to the last", duration(record.seconds)])
    speeds = record.series("training", "images_per_second", against="batches")[1]
    if speeds:
        rows.append(["training images/s (median)", f"{median(speeds):.1f}"])
    for key in (
        *("images", "data_version", "commit", "machine", "precision", "decoder"),
        "best_checkpoint",
    ):
        if settings.get(key):
            rows.append([key.replace("_", " "), _cell(settings[key])])
    return rows


def _cell(value: Any) -> str:
    """Format a setting for a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(each) for each in value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
