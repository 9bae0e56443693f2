"""evaluate.py and predict.py run as commands, on real images with a tiny detector."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from cocodata import Categories, load_split, splits
from experiments import evaluate, predict
from experiments.evaluation.pictures import find_pictures, open_picture, read_pictures
from tests.experiments.evaluation.synthetic_coco import pycocotools_metrics
from tests.experiments.evaluation.test_loop import tiny_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(tiny_detector(90).state_dict(), file)
    return file


def run(module: object, *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(module.main)  # type: ignore[attr-defined]
    return CliRunner().invoke(app, [str(each) for each in arguments])


def few_images(coco_tiny: Path, folder: Path, count: int) -> Path:
    """Create a data set with the first images of the validation split."""
    name = splits(coco_tiny)[1]
    complete = load_split(coco_tiny, name)
    content = json.loads(complete.annotation_file.read_text())
    kept = set(complete.image_ids[:count].tolist())
    content["images"] = [each for each in content["images"] if each["id"] in kept]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    (folder / name).symlink_to((coco_tiny / name).resolve())
    return folder


def test_evaluate_prints_and_writes_the_results(
    coco_tiny: Path, tmp_path: Path, weights: Path
) -> None:
    data = few_images(coco_tiny, tmp_path / "data", 3)
    out = tmp_path / "out"
    arguments = ("--checkpoint", weights, "--model", "tiny", "--data", data, "--out", out)
    result = run(evaluate, *arguments, "--device", "cpu", "--batch-size", 2, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "AP50" in result.stdout
    assert {each.name for each in out.iterdir()} == {
        "detections.json", "metrics.json", "detections.png",
    }  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    split = load_split(data, splits(data)[1])
    stats, _ = pycocotools_metrics(split, out / "detections.json")
    np.testing.assert_allclose(list(metrics["metrics"].values()), stats, rtol=0, atol=1e-9)
    assert metrics["num_images"] == 3


def test_evaluate_reports_what_is_missing(tmp_path: Path, coco_tiny: Path, weights: Path) -> None:
    result = run(evaluate, "--checkpoint", tmp_path / "none", "--data", coco_tiny)
    assert result.exit_code == 1
    assert "does not exist" in " ".join(result.stderr.split())
    result = run(evaluate, "--checkpoint", weights, "--data", tmp_path)
    assert result.exit_code == 1
    assert "not a COCO data set" in " ".join(result.stderr.split())


@pytest.fixture
def pictures(coco_tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    split = load_split(coco_tiny, splits(coco_tiny)[1])
    content = (split.image_dir / split.file_names[0]).read_bytes()
    (folder / "photo.jpg").write_bytes(content)
    (folder / "broken.jpg").write_bytes(content[:2000])
    (folder / "notes.txt").write_text("not a picture, and not an error")
    image = Image.open(folder / "photo.jpg")
    image.convert("RGBA").resize((50, 300)).save(folder / "photo.png")
    orientation = Image.Exif()
    orientation[0x0112] = 6  # rotated by 90 degrees
    image.resize((640, 200)).save(folder / "rotated.jpg", exif=orientation)
    return folder


def test_predict_draws_all_pictures_and_reports_a_broken_one(
    tmp_path: Path, pictures: Path, weights: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--checkpoint", weights, "--model", "tiny", "--images", pictures, "--out", out)
    result = run(predict, *arguments, "--device", "cpu", "--score", 0.05, "--threads", 1)
    assert result.exit_code == 1
    assert "broken.jpg: not a readable picture" in " ".join(result.stderr.split())
    assert "1 picture of 4 could not be read" in " ".join(result.stderr.split())
    assert "1 other file passed over" in result.stdout
    listing = {
        Path(each["file"]).name: each for each in json.loads((out / "detections.json").read_text())
    }
    assert listing.keys() == {"photo.jpg", "photo.png", "rotated.jpg"}
    drawn = {each["drawn"] for each in listing.values()}
    assert drawn == {"photo.jpg", "photo.png.jpg", "rotated.jpg"}
    assert drawn | {"detections.json"} == {each.name for each in out.iterdir()}
    assert Image.open(out / "rotated.jpg").size == (200, 640)
    assert (listing["rotated.jpg"]["width"], listing["rotated.jpg"]["height"]) == (200, 640)
    detections = [each for entry in listing.values() for each in entry["detections"]]
    assert detections
    assert all(each["score"] >= 0.05 for each in detections)
    for entry in listing.values():
        for each in entry["detections"]:
            x1, y1, x2, y2 = each["box"]
            assert -0.01 <= x1 <= x2 <= entry["width"] + 0.01
            assert -0.01 <= y1 <= y2 <= entry["height"] + 0.01


def test_predict_succeeds_on_readable_pictures(
    tmp_path: Path, pictures: Path, weights: Path
) -> None:
    out = tmp_path / "out"
    pattern = pictures / "photo*"
    arguments = ("--checkpoint", weights, "--model", "tiny", "--images", pattern, "--out", out)
    result = run(predict, *arguments, "--device", "cpu", "--score", 1.0, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "0 detections in 2 pictures" in result.stdout


def test_the_input_pipeline_gets_pictures_as_they_are_drawn(pictures: Path, tmp_path: Path) -> None:
    categories = Categories(ids=(1,), names=("thing",))
    read = read_pictures(find_pictures(str(pictures)).files, tmp_path, categories)
    assert [each.name for each in read.unreadable] == ["broken.jpg"]
    for index, file in enumerate(read.files):
        with Image.open(read.split.image_dir / read.split.file_names[index]) as stored:
            assert stored.size == tuple(read.split.sizes[index])
            assert stored.getexif().get(0x0112, 1) == 1
            assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(open_picture(file)))


def test_missing_pictures_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pictures in this folder"):
        find_pictures(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no picture matches the pattern"):
        find_pictures(str(tmp_path / "*.jpg"))


def test_class_names_are_from_coco_the_data_set_or_numbers(coco_tiny: Path) -> None:
    coco = predict.class_categories(90, None)
    assert (coco.name_of(1), coco.name_of(90)) == ("person", "toothbrush")
    assert coco.name_of(12) == "class 12"  # COCO has no category 12
    real = predict.class_categories(90, coco_tiny)
    for category_id in real.ids:
        assert coco.name_of(category_id) == real.name_of(category_id)
    assert predict.class_categories(3, None).name_of(2) == "class 2"
    with pytest.raises(ValueError, match="has 3 classes"):
        predict.class_categories(3, coco_tiny)
