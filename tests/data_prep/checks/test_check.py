import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cocodata import DatasetError, ProblemKind, check_dataset, load_split, load_validated

EditAnnotations = Callable[[Callable[[dict[str, Any]], None]], None]

NAMES = ("train2017", "val2017")
FIRST = "train2017/000000001000.jpg"
SECOND = "train2017/000000001007.jpg"


def _message(data: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_validated(data, NAMES)
    return str(caught.value)


def _single(tree: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the annotation of one object, not a crowd."""
    return [entry for entry in tree["annotations"] if not entry["iscrowd"]][index]


def test_valid_data_set_has_no_problems(data: Path) -> None:
    validated = load_validated(data, NAMES)
    assert validated.report.problems == []
    assert not validated.report.used_manifest
    assert validated.left_out == {"train2017": 0, "val2017": 0}
    for split in validated.splits:
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
def test_damaged_image_is_reported(
    data: Path, damage: Callable[[Path], None], kind: ProblemKind, detail: str
) -> None:
    damage(data / FIRST)
    message = _message(data)
    assert message.startswith(f"{data}: 1 problem found in the data set\n{kind} (1); ")
    assert f"  {FIRST}" in message
    assert detail in message
    assert message.endswith("strict: false trains without the 1 image affected")

    validated = load_validated(data, NAMES, strict=False)
    assert validated.left_out == {"train2017": 1, "val2017": 0}
    assert 1000 not in validated.splits[0].image_ids
    assert len(validated.splits[0]) == 219


@pytest.mark.parametrize(
    ("bbox", "detail"),
    [
        ([10, 10, 0, 20], "has no area"),
        ([10, 10, 20, -5], "has no area"),
        ([-30, 10, 30, 20], "lies outside the image, which is"),
        ([300, 10, 20, 20], "lies outside the image, which is"),
        ([10, 400, 20, 20], "lies outside the image, which is"),
    ],
)
def test_invalid_box_is_reported(
    data: Path, edit_train: EditAnnotations, bbox: list[float], detail: str
) -> None:
    edit_train(lambda tree: _single(tree, 0).update(bbox=bbox))
    message = _message(data)
    assert f"{ProblemKind.BOX} (1); " in message
    assert f", annotation 1: bbox {[float(v) for v in bbox]} {detail}" in message
    assert load_validated(data, NAMES, strict=False).left_out["train2017"] == 1


@pytest.mark.parametrize("bbox", [[-1.5, -1.5, 60, 60], [10, 10, 0.5, 20]])
def test_rounding_and_slivers_are_accepted(
    data: Path, edit_train: EditAnnotations, bbox: list[float]
) -> None:
    edit_train(lambda tree: _single(tree, 0).update(bbox=bbox))
    report = check_dataset(data, NAMES)
    assert report.problems == []
    assert len(report.notes) == (bbox[2] < 1)


def test_the_two_flat_boxes_in_coco_are_accepted(data: Path, edit_train: EditAnnotations) -> None:
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
        "train2017: 1 box less than a pixel wide or high, not used in training",
    ]


def _repeat_image(tree: dict[str, Any]) -> None:
    tree["images"].append(tree["images"][0])


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (lambda t: _single(t, 0).update(category_id=4), ProblemKind.CATEGORY, "category_id 4 is"),
        (lambda t: _single(t, 0).update(image_id=5), ProblemKind.IDS, "has its image_id 5"),
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
def test_contradictory_annotations_are_reported(
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
    load_validated(data, NAMES, strict=False)


def _number_again(tree: dict[str, Any], new: dict[int, int]) -> None:
    """Give the categories other ids; leave out those without one, and their boxes."""
    for section, key in (("annotations", "category_id"), ("categories", "id")):
        tree[section] = [entry for entry in tree[section] if entry[key] in new]
        for entry in tree[section]:
            entry[key] = new[entry[key]]


@pytest.mark.parametrize(
    "new",
    [
        {1: 8, 2: 7, 3: 5, 5: 3, 7: 2, 8: 1},  # the same ids in another order
        {1: 0, 2: 1, 3: 2, 5: 3, 7: 4, 8: 5},  # numbered from 0
        {2: 1, 3: 2, 5: 3, 7: 4, 8: 5},  # without the first class, numbered again
        {1: 1, 8: 8},  # only some classes, with their ids
    ],
)
def test_classes_of_val_get_the_labels_of_train(
    data: Path, edit_val: EditAnnotations, new: dict[int, int]
) -> None:
    expected = load_validated(data, NAMES).splits[1]
    kept = np.isin(expected.labels, list(new))
    edit_val(lambda tree: _number_again(tree, new))
    validated = load_validated(data, NAMES)
    train, val = validated.splits
    assert validated.report.notes == [
        f"val2017: classes ({len(new)}) are matched by name to those of train2017 (6): ids or "
        "number differ"
    ]
    np.testing.assert_array_equal(val.labels, expected.labels[kept])
    np.testing.assert_array_equal(val.boxes, expected.boxes[kept])
    assert val.categories.ids == tuple(sorted(new.values()))
    assert val.categories.num_classes == train.categories.num_classes == 8
    for label in range(1, 9):
        assert val.categories.name_of(label) == train.categories.name_of(label)


@pytest.mark.parametrize("strict", [True, False])
def test_other_classes_in_val_are_an_error(
    data: Path, edit_val: EditAnnotations, strict: bool
) -> None:
    edit_val(lambda tree: tree["categories"][0].update(name="hoop"))
    with pytest.raises(DatasetError) as caught:
        load_validated(data, NAMES, strict=strict)
    assert f"{ProblemKind.CLASSES} (1); " in str(caught.value)
    assert "only the first has 'hoop'; id 1 is 'hoop' and 'disc'" in str(caught.value)


def test_one_message_lists_all_problems(data: Path, edit_train: EditAnnotations) -> None:
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
        "more than 1 % is an error even with strict: false"
    )


def test_more_than_one_percent_unusable_is_an_error_even_if_not_strict(data: Path) -> None:
    _remove(data / FIRST)
    _truncate(data / SECOND)
    validated = load_validated(data, NAMES, strict=False)  # 2 of 220
    assert validated.left_out["train2017"] == 2
    _remove(data / "train2017" / "000000001014.jpg")
    with pytest.raises(DatasetError, match=r"3 images of 220 in train2017 \(1.4%\) cannot be used"):
        load_validated(data, NAMES, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_empty_split_is_an_error(data: Path, edit_train: EditAnnotations, strict: bool) -> None:
    edit_train(lambda tree: tree.update(images=[], annotations=[]))
    with pytest.raises(DatasetError, match=r"empty split \(1\).*\n.*it lists no images"):
        load_validated(data, NAMES, strict=strict)
    shutil.rmtree(data / "val2017")
    with pytest.raises(DatasetError, match="val2017: the image folder is missing"):
        load_validated(data, NAMES, strict=strict)


def test_split_without_boxes_is_an_error(data: Path, edit_train: EditAnnotations) -> None:
    edit_train(lambda tree: tree.update(annotations=[]))
    assert "it has no box to train on" in _message(data)


def test_missing_annotations_are_an_error(data: Path) -> None:
    path = data / "annotations" / "instances_train2017.json"
    path.unlink()
    assert f"{path}: annotation file missing" in _message(data)


def test_long_list_is_shortened_only_in_the_message(data: Path) -> None:
    for path in sorted((data / "train2017").iterdir())[:60]:
        path.unlink()
    message = _message(data)
    assert f"{data}: 60 problems found" in message
    assert message.count("  train2017/") == 50
    assert "  and 10 more" in message
    assert len(check_dataset(data, NAMES).unusable("train2017")) == 60


@pytest.fixture
def verified(generated: Path, tmp_path: Path) -> Path:
    """A copy of the data set with its verified manifest."""
    folder = tmp_path / "verified"
    shutil.copytree(generated, folder)
    return folder


def test_verified_data_set_is_only_compared_with_its_manifest(
    verified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_be_called(*_: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr("cocodata.checks.check.check_header", must_not_be_called)
    validated = load_validated(verified, NAMES)
    assert validated.report.used_manifest
    assert [len(split) for split in validated.splits] == [220, 110]

    (verified / FIRST).unlink()
    _truncate(verified / SECOND)
    message = _message(verified)
    assert f"{ProblemKind.MISSING} (1); " in message
    assert f"{ProblemKind.CHANGED} (1); " in message
    assert f"  {SECOND}: 2000 bytes, " in message
    validated = load_validated(verified, NAMES, strict=False)
    assert validated.left_out["train2017"] == 2


def test_edited_annotation_file_is_reported(verified: Path) -> None:
    path = verified / "annotations" / "instances_val2017.json"
    content = path.read_text()
    path.write_text(content.replace('"category_id":1', '"category_id":2', 1))
    assert "instances_val2017.json: content does not match the hash in the manifest" in _message(
        verified
    )


def test_unverified_manifest_does_not_replace_the_check(verified: Path) -> None:
    path = verified / "manifest.json"
    tree = json.loads(path.read_text())
    tree["verified"] = None
    path.write_text(json.dumps(tree))
    content = bytearray((verified / FIRST).read_bytes())
    content[:4] = b"\x89PNG"  # Keeps the size.
    (verified / FIRST).write_bytes(content)
    assert f"{ProblemKind.NOT_JPEG} (1); " in _message(verified)
