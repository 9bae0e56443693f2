"""The report of a run: metrics, plots, tables and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.evaluation.drawing import DrawnImage, class_color, contact_sheet, draw_detections
from experiments.evaluation.report import write_report
from reporting.coco_metrics import METRICS
from reporting.plots import plot_average_precision, plot_losses, save_figure
from reporting.records import read_record
from reporting.tables import class_rows, class_table, markdown_table, metrics_table


def line(kind: str, batches: int, **values: Any) -> str:
    report = {"kind": kind, "batches": batches, "epochs": batches / 10, "time": 1e9 + batches}
    return json.dumps(report | values) + "\n"


def validation(batches: int, ap: float) -> str:
    metrics = dict.fromkeys(METRICS, 0.25) | {"AP": ap, "AP50": ap, "APs": -1.0}
    return line("validation", batches, **metrics, val_loss=1.0, ap_per_class={"cat|s": ap})


def test_reports_after_a_resume_replace_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first = [line("train", 10, loss=3.0), validation(10, 0.1), line("train", 20, loss=2.0)]
    abandoned = [validation(20, 0.9), line("train", 30, loss=9.0), '{"kind": "tra\n']
    resumed = [line("train", 20, loss=1.5), validation(20, 0.3)]
    file.write_text("".join([*first, *abandoned, *resumed]))
    record = read_record(file)
    assert record.series("training", "loss", against="batches") == ([10, 20], [3.0, 1.5])
    assert record.series("validation", "AP", against="epochs") == ([1.0, 2.0], [0.1, 0.3])
    assert record.series("training", "lr", against="batches") == ([], [])
    assert record.seconds == 10


def test_a_missing_metrics_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: no such file"):
        read_record(tmp_path / "metrics.jsonl")


def test_report_is_complete(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        line("train", 10, loss=3.0, class_loss=2.0, box_loss=0.02, images_per_second=40.0)
        + validation(10, 0.75)
        + validation(20, 0.5)
    )
    (tmp_path / "run.json").write_text(json.dumps({"identity": {"lr": 0.1}, "versions": {"t": 1}}))
    (tmp_path / "summary.json").write_text(json.dumps({"seconds": 125}))
    picture = DrawnImage(Image.new("L", (60, 40)), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    readme = write_report(tmp_path, pictures=[picture])
    names = {each.name for each in readme.parent.iterdir()}
    assert names == {"README.md", "ap.png", "ap.svg", "loss.png", "loss.svg", "detections.png"}
    text = readme.read_text()
    for part in ("AP **0.5000**", "Best AP 0.7500 after 1 epochs", "| APs | – |", "2 min 05 s"):
        assert part in text
    for part in ("| cat\\|s | 0.5000 |", "| lr | 0.1 |", "40.0", "detections.png"):
        assert part in text


def test_a_run_without_an_evaluation_is_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line("train", 10, loss=3.0))
    with pytest.raises(ValueError, match="no evaluation in it yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_curves_of_a_diverged_or_empty_run_are_plotted(tmp_path: Path) -> None:
    nan = float("nan")
    save_figure(plot_losses({"total": ([1, 2], [nan, nan])}, {}), tmp_path / "a")
    save_figure(plot_losses({}, {}), tmp_path / "b")
    save_figure(plot_average_precision({"AP": ([], []), "AP50": ([1], [0.0])}), tmp_path / "c")
    assert len(list(tmp_path.iterdir())) == 6


def test_tables_have_every_metric_and_class() -> None:
    metrics = {name: number / 100 for number, name in enumerate(METRICS)} | {"APs": -1.0}
    classes = {f"class {n}": n / 10 for n in range(7)} | {"unseen": -1.0}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(metrics_table(metrics))
    console.print(class_table(classes))
    text = console.export_text()
    assert all(name in text for name in [*METRICS, *classes])
    assert "0.1100" in text
    rows = class_rows(classes, columns=3)
    assert rows[0] == ["class 6", "0.6000", "class 3", "0.3000", "class 0", "0.0000"]
    assert rows[2][4:] == ["", ""]
    assert rows[1][4:] == ["unseen", "–"]
    assert class_rows({}, columns=3) == [[]]


def test_markdown_escapes_bars() -> None:
    assert markdown_table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"


def test_boxes_are_drawn_at_their_position_in_the_class_color() -> None:
    image = Image.new("RGB", (960, 480))
    box = np.array([[100.0, 200.0, 300.0, 400.0]])
    drawn = draw_detections(image, box, np.array([7]), np.array([0.9]), "thing {}".format)
    assert drawn.size == image.size
    for pixel in [(100, 300), (300, 300), (200, 400)]:
        assert drawn.getpixel(pixel) == class_color(7)
    assert drawn.getpixel((200, 300)) == (0, 0, 0)
    assert image.getextrema() == ((0, 0),) * 3  # the original is unchanged
    above = np.asarray(drawn)[150:200, 100:200]
    assert (above == class_color(7)).all(axis=-1).sum() > 300  # the tag


@pytest.mark.parametrize("size", [(1, 1), (64, 20), (20, 64), (3000, 100)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_detections_can_be_drawn_on_any_size_and_mode(size: tuple[int, int], mode: str) -> None:
    boxes = np.array([[0.0, 0.0, *size], [size[0], size[1], 0, 0], [-5, -5, 5000, 5000]])
    labels, scores = np.array([1, 2, 3]), np.array([0.9, 0.9, 0.1])
    drawn = draw_detections(
        Image.new(mode, size), boxes, labels, scores, "a very long class name {}".format,
        truth_boxes=boxes,
    )  # fmt: skip
    assert drawn.mode == "RGB"
    assert max(drawn.size) >= 480  # enlarged for the text
    assert drawn.width / drawn.height == pytest.approx(size[0] / size[1], rel=0.05)


def test_adjacent_labels_have_different_colors() -> None:
    colors = np.array([class_color(label) for label in range(1, 91)])
    assert len(np.unique(colors, axis=0)) == 90
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100


def test_a_contact_sheet_has_every_picture() -> None:
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    none = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)
    sizes = [(100, 50), (50, 100), (80, 80)]
    pictures = [
        DrawnImage(Image.new("RGB", size, color), *none)
        for size, color in zip(sizes, colors, strict=True)
    ]
    sheet = np.asarray(contact_sheet(pictures, str, columns=2))
    for (width, height), color in zip(sizes, colors, strict=True):
        area = 480**2 * min(width, height) / max(width, height)
        assert (sheet == color).all(axis=-1).sum() == pytest.approx(area, rel=0.01)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], str)
