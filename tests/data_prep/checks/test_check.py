import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cocodata import DatasetError, ProblemKind, check_dataset, load_split, require_sound

EditAnnotations = Callable[[Callable[[dict[str, Any]], None]], None]

NAMES = ("train2017", "val2017")
FIRST = "train2017/000000001000.jpg"
SECOND = "train2017/000000001007.jpg"


def _message(data: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        require_sound(data, NAMES)
    return str(caught.value)


def _single(tree: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the annotation of one object, not a crowd."""
    return [entry for entry in tree["annotations"] if not entry["iscrowd"]][index]


def test_a_sound_data_set_has_no_problems(data: Path) -> None:
    sound = require_sound(data, NAMES)
    assert sound.report.problems == []
    assert not sound.report.held_against_manifest
    assert sound.left_out == {"train2017": 0, "val2017": 0}
    for split in sound.splits:
        expected = load_split(data, split.name)
        np.testing.assert_array_equal(split.image_ids, expected.image_ids)
        np.testing.assert_array_equal(split.boxes, expected.boxes)


def test_real_images_have_no_problems(coco_tiny: Path) -> None:
    report = check_dataset(coco_tiny, NAMES)
    assert report.problems == []


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _make_png(path: Path) -> None:
    with Image.open(path) as picture:
        picture.save(path, "PNG")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _shrink(path: Path) -> None:
    with Image.open(path) as picture:
        smaller = picture.resize((50, 40))
    smaller.save(path, "JPEG")


@pytest.mark.parametrize(
    ("damage", "kind", "detail"),
    [
        (_remove, ProblemKind.MISSING, FIRST),
        (_truncate, ProblemKind.TRUNCATED, "ends after 2000 bytes without an end marker"),
        (_empty, ProblemKind.TRUNCATED, "the file is empty"),
        (_make_png, ProblemKind.NOT_JPEG, "a PNG file"),
        (_shrink, ProblemKind.SIZE, "50 x 40 pixels, "),
    ],
)
def test_a_damaged_image_is_found(
    data: Path, damage: Callable[[Path], None], kind: ProblemKind, detail: str
) -> None:
    damage(data / FIRST)
    message = _message(data)
    assert message.startswith(f"{data}: 1 problem found in the data set\n{kind} (1); ")
    assert f"  {FIRST}" in message
    assert detail in message
    assert message.endswith("strict: false trains without the 1 image concerned")

    sound = require_sound(data, NAMES, strict=False)
    assert sound.left_out == {"train2017": 1, "val2017": 0}
    assert 1000 not in sound.splits[0].image_ids
    assert len(sound.splits[0]) == 219


@pytest.mark.parametrize(
    ("bbox", "detail"),
    [
        ([10, 10, 0, 20], "has no area"),
        ([10, 10, 20, -5], "has no area"),
        ([-30, 10, 60, 20], "reaches outside the image of"),
        ([10, 10, 300, 20], "reaches outside the image of"),
        ([10, 400, 20, 20], "reaches outside the image of"),
    ],
)
def test_a_wrong_box_is_found(
    data: Path, edit_train: EditAnnotations, bbox: list[float], detail: str
) -> None:
    edit_train(lambda tree: _single(tree, 0).update(bbox=bbox))
    message = _message(data)
    assert f"{ProblemKind.BOX} (1); " in message
    assert f", annotation 1: bbox {[float(v) for v in bbox]} {detail}" in message
    assert require_sound(data, NAMES, strict=False).left_out["train2017"] == 1


@pytest.mark.parametrize("bbox", [[-1.5, -1.5, 60, 60], [10, 10, 0.5, 20]])
def test_rounding_and_slivers_are_no_problem(
    data: Path, edit_train: EditAnnotations, bbox: list[float]
) -> None:
    edit_train(lambda tree: _single(tree, 0).update(bbox=bbox))
    report = check_dataset(data, NAMES)
    assert report.problems == []
    assert len(report.notes) == (bbox[2] < 1)


def test_the_two_flat_boxes_of_coco_itself_are_no_problem(
    data: Path, edit_train: EditAnnotations
) -> None:
    def make_flat(tree: dict[str, Any]) -> None:
        entry = _single(tree, 0)
        image = next(i for i in tree["images"] if i["id"] == entry["image_id"])
        others = [a for a in tree["annotations"] if a["image_id"] == entry["image_id"]]
        for annotation in others:
            annotation["image_id"] = 200365
        image["id"] = 200365
        entry.update(id=918, bbox=[10, 10, 1.03, 0.0])

    edit_train(make_flat)
    report = check_dataset(data, NAMES)
    assert report.problems == []
    assert report.notes == [
        "train2017: 1 box less than a pixel wide or high, not trained on",
    ]


def _repeat_image(tree: dict[str, Any]) -> None:
    tree["images"].append(tree["images"][0])


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (lambda t: _single(t, 0).update(category_id=4), ProblemKind.CATEGORY, "category_id 4 is"),
        (lambda t: _single(t, 0).update(image_id=5), ProblemKind.IDS, "with its image_id 5"),
        (_repeat_image, ProblemKind.IDS, "several images have the id 1000"),
        (
            lambda t: t["images"][0].update(file_name="../val2017/000000002000.jpg"),
            ProblemKind.PATH,
            "name it '../val2017/000000002000.jpg'",
        ),
        (
            lambda t: t["images"][0].update(file_name="/etc/passwd"),
            ProblemKind.PATH,
            "name it '/etc/passwd'",
        ),
    ],
)
def test_contradictions_are_found(
    data: Path,
    edit_train: EditAnnotations,
    change: Callable[[dict[str, Any]], None],
    kind: ProblemKind,
    detail: str,
) -> None:
    edit_train(change)
    message = _message(data)
    assert f"{kind} (1); " in message
    assert detail in message
    require_sound(data, NAMES, strict=False)


def test_all_problems_are_in_one_message(data: Path, edit_train: EditAnnotations) -> None:
    def change(tree: dict[str, Any]) -> None:
        _single(tree, -1).update(category_id=77)
        _single(tree, -9).update(bbox=[0, 0, 0, 0])

    edit_train(change)
    _remove(data / FIRST)
    _truncate(data / SECOND)
    (data / "annotations" / "instances_val2017.json").write_text("{")
    message = _message(data)
    assert message.startswith(f"{data}: 5 problems found")
    for kind in ("ANNOTATIONS", "MISSING", "TRUNCATED", "BOX", "CATEGORY"):
        assert f"{ProblemKind[kind]} (1); " in message
    assert message.count("\n") == 11
    assert message.endswith(
        "4 images of 220 in train2017 (1.8%) cannot be used; val2017 cannot be used at all: "
        "more than 1 % is an error also with strict: false"
    )


def test_more_than_one_percent_is_an_error_all_the_same(data: Path) -> None:
    _remove(data / FIRST)
    _truncate(data / SECOND)
    sound = require_sound(data, NAMES, strict=False)  # 2 of 220
    assert sound.left_out["train2017"] == 2
    _remove(data / "train2017" / "000000001014.jpg")
    with pytest.raises(DatasetError, match=r"3 images of 220 in train2017 \(1.4%\) cannot be used"):
        require_sound(data, NAMES, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_an_empty_split_is_an_error(data: Path, edit_train: EditAnnotations, strict: bool) -> None:
    edit_train(lambda tree: tree.update(images=[], annotations=[]))
    with pytest.raises(DatasetError, match=r"empty split \(1\).*\n.*it lists no images"):
        require_sound(data, NAMES, strict=strict)
    shutil.rmtree(data / "val2017")
    with pytest.raises(DatasetError, match="val2017: the image folder is missing"):
        require_sound(data, NAMES, strict=strict)


def test_a_split_without_boxes_is_an_error(data: Path, edit_train: EditAnnotations) -> None:
    edit_train(lambda tree: tree.update(annotations=[]))
    assert "it has no box that can be learnt" in _message(data)


def test_missing_annotations_are_an_error(data: Path) -> None:
    path = data / "annotations" / "instances_train2017.json"
    path.unlink()
    assert f"{path}: annotation file missing" in _message(data)


def test_a_long_list_is_cut_in_the_message_only(data: Path) -> None:
    for path in sorted((data / "train2017").iterdir())[:60]:
        path.unlink()
    message = _message(data)
    assert f"{data}: 60 problems found" in message
    assert message.count("  train2017/") == 50
    assert "  and 10 more" in message
    assert len(check_dataset(data, NAMES).unusable("train2017")) == 60


@pytest.fixture
def sealed(generated: Path, tmp_path: Path) -> Path:
    """A copy of the data set with its verified manifest."""
    folder = tmp_path / "sealed"
    shutil.copytree(generated, folder)
    return folder


def test_a_verified_data_set_is_only_held_against_its_manifest(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_be_called(*_: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr("cocodata.checks.check.jpeg_size", must_not_be_called)
    sound = require_sound(sealed, NAMES)
    assert sound.report.held_against_manifest
    assert [len(split) for split in sound.splits] == [220, 110]

    (sealed / FIRST).unlink()
    _truncate(sealed / SECOND)
    message = _message(sealed)
    assert f"{ProblemKind.MISSING} (1); " in message
    assert f"{ProblemKind.CHANGED} (1); " in message
    assert f"  {SECOND}: 2000 bytes, " in message
    sound = require_sound(sealed, NAMES, strict=False)
    assert sound.left_out["train2017"] == 2


def test_an_edited_annotation_file_breaks_the_seal(sealed: Path) -> None:
    path = sealed / "annotations" / "instances_val2017.json"
    content = path.read_text()
    path.write_text(content.replace('"category_id":1', '"category_id":2', 1))
    assert "instances_val2017.json: content is not what the manifest's hash says" in _message(
        sealed
    )


def test_an_unverified_manifest_spares_nothing(sealed: Path) -> None:
    path = sealed / "manifest.json"
    tree = json.loads(path.read_text())
    tree["verified"] = None
    path.write_text(json.dumps(tree))
    content = bytearray((sealed / FIRST).read_bytes())
    content[:4] = b"\x89PNG"  # Keeps the size.
    (sealed / FIRST).write_bytes(content)
    assert f"{ProblemKind.NOT_JPEG} (1); " in _message(sealed)
