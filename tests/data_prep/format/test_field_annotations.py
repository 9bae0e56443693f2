"""Annotation files as tools in the field write them: read if only one reading is possible."""

import copy
import gzip
import json
import math
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cocodata import DatasetError
from cocodata.format.annotations import Annotations, read_annotations

TREE: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 3, "file_name": "b.jpg", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [3, 4, 9, 9.5], "area": 85.5},
    ],
    "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    for entry in TREE["images"]:
        size = entry["width"], entry["height"]
        Image.new("RGB", size).save(folder / entry["file_name"], "JPEG")
    return folder


def _read(images: Path, content: bytes | dict[str, Any]) -> Annotations:
    path = images.parent / "instances.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_annotations(path, images)


def _changed(section: str, *changes: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    for entry, change in zip(tree[section], changes, strict=False):
        entry.update(change)
    return tree


def _same(found: Annotations, expected: Annotations) -> None:
    assert found.file_names == expected.file_names
    assert found.categories == expected.categories
    for name in ("image_ids", "sizes", "box_ids", "box_image_ids", "box_category_ids", "boxes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    for name in ("areas", "crowds", "ignored"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


TEXT = json.dumps(TREE, indent=1)


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        gzip.compress(TEXT.encode()),
        gzip.compress(TEXT.encode("utf-8-sig")),
        TEXT.replace("}\n ]", "},\n ]").encode(),
        TEXT.replace("}\n ]", "}\n ,]").replace("\n}", ",\n }").encode(),
    ],
)
def test_other_encodings_and_last_commas_are_read(images: Path, content: bytes) -> None:
    found = _read(images, content)
    _same(found, _read(images, TREE))
    assert found.notes == ()


def test_commas_within_text_stay(images: Path) -> None:
    tree = copy.deepcopy(TREE)
    tree["categories"][0]["name"] = 'a ",] b,}'
    found = _read(images, json.dumps(tree)[:-1].encode() + b",}")
    assert found.categories.names == ('a ",] b,}', "ring")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"\0" * 50, "nothing but zero bytes"),
        (TEXT[:200].encode(), "ends in the middle, after 200 bytes.*downloaded"),
        (gzip.compress(TEXT.encode())[:-20], "compressed with gzip, and damaged"),
        (b"PK\x03\x04....", "a zip archive. Unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><html>", "a web page or XML"),
        (b"<?xml version='1.0'?><annotation/>", "XML. Convert"),
        (TEXT.replace("disc", "caf\xe9").encode("latin-1"), "UTF-8.*Save it with the encoding"),
        (TEXT.replace('"id": 7', "'id': 7").encode(), r"line 4, column 4, near .*id.*: 7"),
        (b"[" * 100_000, "not COCO"),
    ],
)
def test_other_content_is_named(images: Path, content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        _read(images, content)
    assert str(caught.value).startswith(f"{images.parent / 'instances.json'}: ")


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        ([30], 30.0),
        ("30", 30.0),
        (None, math.nan),
        ("", math.nan),
        ("large", math.nan),
        ([], math.nan),
        ([1, 2], math.nan),
        (-5, math.nan),
        (math.nan, math.nan),
        (math.inf, math.nan),
        (10**400, math.nan),
        (True, math.nan),
        ({"value": 3}, math.nan),
    ],
)
def test_area_is_a_number_or_that_of_the_box(images: Path, area: Any, expected: float) -> None:
    found = _read(images, _changed("annotations", {"area": area}))
    np.testing.assert_array_equal(found.areas, [expected, 85.5])
    told = math.isnan(expected) and area is not None
    assert (
        list(found.notes) == ["1 area unusable (NaN, negative or text): the box's is used"] * told
    )


@pytest.mark.parametrize(
    ("value", "crowd"),
    [
        *(("0", False), ("false", False), ("", False), (False, False), (0.0, False), (None, False)),
        *(("1", True), ("True", True), (True, True), (1.0, True), (1, True)),
    ],
)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_marks_may_be_text(images: Path, key: str, value: Any, crowd: bool) -> None:
    found = _read(images, _changed("annotations", {key: value}))
    assert found.ignored.tolist() == [crowd, False]
    assert found.crowds.tolist() == [crowd and key == "iscrowd", False]


@pytest.mark.parametrize("value", ["maybe", [0], math.nan])
def test_unclear_mark_is_refused(images: Path, value: Any) -> None:
    with pytest.raises(DatasetError, match=r"annotations\[0\] has no usable iscrowd.*0 or 1"):
        _read(images, _changed("annotations", {"iscrowd": value}))


def _with_ids(first: Any, second: Any) -> dict[str, Any]:
    tree = _changed("images", {"id": first}, {"id": second})
    tree["annotations"][0]["image_id"] = second
    tree["annotations"][1]["image_id"] = first
    return tree


@pytest.mark.parametrize(
    ("first", "second", "ids"),
    [
        ("000000000007", "000000000003", [7, 3]),
        (7.0, 3.0, [7, 3]),
        ("-1", "0", [-1, 0]),
        (2**62, 3, [2**62, 3]),
        # What cannot be a number of 63 bits is numbered in its order.
        ("b_07", "a_03", [2, 1]),
        ("x", 12, [2, 1]),
        ("01", "1", [1, 2]),
        (2**63 + 5, 2**63 + 4, [2, 1]),
        (2**64 + 5, 2**64 + 4, [2, 1]),
        (2**127 + 1, 2**127, [2, 1]),
        (str(2**127 + 1), 3, [2, 1]),
    ],
)
def test_image_ids_become_different_numbers(
    images: Path, first: Any, second: Any, ids: list[int]
) -> None:
    found = _read(images, _with_ids(first, second))
    assert found.image_ids.tolist() == ids
    assert found.box_image_ids.tolist() == ids[::-1]
    numbered = not set(ids) - {1, 2}
    assert len(found.notes) == numbered
    assert all("the 2 images are numbered in the order of their ids" in n for n in found.notes)
    original = [found.original_ids.get(number, number) for number in ids]
    assert original == [first, second]


def test_annotation_may_name_a_text_id_as_a_number(images: Path) -> None:
    tree = _with_ids("007", "003")
    tree["annotations"][0]["image_id"] = 3
    assert _read(images, tree).box_image_ids.tolist() == [3, 7]


def test_unknown_image_keeps_its_name(images: Path) -> None:
    tree = _with_ids("b", "a")
    tree["annotations"][0]["image_id"] = "aa"
    found = _read(images, tree)
    assert found.image_ids.tolist() == [2, 1]
    assert found.box_image_ids.tolist() == [3, 2]
    assert found.original_ids[3] == "aa"


@pytest.mark.parametrize("value", [None, True, 1.5, [1], "", 1e300, math.nan])
def test_image_id_of_another_type_is_refused(images: Path, value: Any) -> None:
    with pytest.raises(DatasetError, match="id"):
        _read(images, _changed("images", {"id": value}))


@pytest.mark.parametrize(("value", "expected"), [("1", 1), (1.0, 1), ("01", 1)])
def test_category_ids_may_be_numbers_in_text(images: Path, value: Any, expected: int) -> None:
    tree = _changed("categories", {"id": value})
    tree["annotations"][0]["category_id"] = value
    found = _read(images, tree)
    assert found.categories.ids == (1, 2)
    assert found.box_category_ids.tolist() == [expected, 2]


@pytest.mark.parametrize("value", ["disc", 2**63, 2**70, None, True, 1.5])
@pytest.mark.parametrize("section", ["categories", "annotations"])
def test_other_category_ids_are_refused(images: Path, section: str, value: Any) -> None:
    key = "id" if section == "categories" else "category_id"
    message = rf"{section}\[0\] has no usable .*number the categories"
    with pytest.raises(DatasetError, match=message if value != 2**70 else "category|id"):
        _read(images, _changed(section, {key: value}))


@pytest.mark.parametrize("value", ["ann-1", 2**70, None, [3]])
def test_annotation_ids_may_be_anything(images: Path, value: Any) -> None:
    found = _read(images, _changed("annotations", {"id": value}))
    assert len(found.box_ids) == 2
    assert found.box_ids[1] == 2


@pytest.mark.parametrize("missing", [{}, {"width": None}, {"width": 0}, {"width": ""}])
def test_missing_sizes_are_read_from_the_files(images: Path, missing: dict[str, Any]) -> None:
    tree = _changed("images", missing)
    if not missing:
        for key in ("width", "height"):
            del tree["images"][0][key]
    found = _read(images, tree)
    assert found.sizes.tolist() == [[40, 30], [20, 50]]
    assert found.notes == ("1 image without width and height, which the files give",)


def test_size_of_a_missing_file_stays_unknown(images: Path) -> None:
    (images / "a.jpg").unlink()
    found = _read(images, _changed("images", {"width": None}))
    assert found.sizes.tolist() == [[0, 0], [20, 50]]
    assert found.notes == ()


def test_sizes_may_be_text(images: Path) -> None:
    found = _read(images, _changed("images", {"width": "40", "height": 30.0}))
    assert found.sizes.tolist() == [[40, 30], [20, 50]]


def test_boxes_may_be_text_and_empty_ones_stay_recognizable(images: Path) -> None:
    tree = _changed("annotations", {"bbox": ["1", "2.5", 5, "6"]}, {"bbox": []})
    np.testing.assert_array_equal(_read(images, tree).boxes, [[1, 2.5, 5, 6], [math.nan] * 4])
    tree = _changed("annotations", {"bbox": []}, {"bbox": []})
    np.testing.assert_array_equal(_read(images, tree).boxes, np.full((2, 4), math.nan))


@pytest.mark.parametrize(
    ("bbox", "clipped"),
    [
        ([-20, 3, 30, 10], [0, 3, 10, 10]),
        ([5, -9, 30, 90], [5, 0, 15, 50]),
        ([-1.5, -1.5, 22, 22], None),  # Rounding, as in COCO.
        ([18, 10, 4, 5], None),
        ([21, 10, 5, 5], None),  # Outside: for the check.
        ([-9, 10, 9, 5], None),
    ],
)
def test_boxes_over_the_edge_are_clipped(
    images: Path, bbox: list[float], clipped: list[float] | None
) -> None:
    found = _read(images, _changed("annotations", {"bbox": bbox}))
    np.testing.assert_array_equal(found.boxes[0], clipped or bbox)
    note = "1 box over the edge of the image, clipped to it"
    assert list(found.notes) == [note] * (clipped is not None)


@pytest.mark.parametrize(
    "name",
    [
        "train\\a.jpg",
        "C:\\Users\\me\\train\\a.jpg",
        "train/a.jpg",
        "../images/a.jpg",
        "/home/me/train/a.jpg",
        "http://images.example.org/train/a.jpg",
        "https://example.org/a.jpg?token=b.jpg",
        "s3://bucket/a.jpg",
    ],
)
def test_names_from_elsewhere_find_their_files(images: Path, name: str) -> None:
    found = _read(images, _changed("images", {"file_name": name}))
    assert found.file_names == ["a.jpg", "b.jpg"]
    assert found.notes == (f"1 file name adapted to find the files: {name} is read from a.jpg",)


def test_exact_names_come_first(images: Path) -> None:
    for name in ("sub/a.jpg", "x\\a.jpg", "50%.jpg", "train/a.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"")
        assert _read(images, _changed("images", {"file_name": name})).file_names[0] == name
    for name in ("./sub/a.jpg", "sub//a.jpg"):
        found = _read(images, _changed("images", {"file_name": name}))
        assert found.file_names[0] == "sub/a.jpg"
        assert found.notes == ()


def test_address_may_be_the_only_name(images: Path) -> None:
    tree = _changed("images", {"coco_url": "http://images.cocodataset.org/train2017/a.jpg"})
    del tree["images"][0]["file_name"]
    assert _read(images, tree).file_names == ["a.jpg", "b.jpg"]


def test_escapes_of_an_address_are_undone(images: Path) -> None:
    (images / "a.jpg").rename(images / "caf\xe9 1.jpg")
    name = "http://example.org/train/caf%C3%A9%201.jpg"
    found = _read(images, _changed("images", {"file_name": name}))
    assert found.file_names == ["caf\xe9 1.jpg", "b.jpg"]


@pytest.mark.parametrize("names", [("NFC", "NFD"), ("NFD", "NFC")])
def test_other_unicode_form_finds_the_file(images: Path, names: tuple[str, str]) -> None:
    written, on_disk = (unicodedata.normalize(form, "f\xfc\xdfe_\xe9.jpg") for form in names)
    (images / "a.jpg").rename(images / on_disk)
    found = _read(images, _changed("images", {"file_name": f"train/{written}"}))
    assert found.file_names == [on_disk, "b.jpg"]


def test_file_of_two_images_is_left_alone(images: Path) -> None:
    tree = _changed("images", {"file_name": "cam1/a.jpg"}, {"file_name": "cam2/a.jpg"})
    found = _read(images, tree)
    assert found.file_names == ["cam1/a.jpg", "cam2/a.jpg"]
    assert found.notes == ("1 file could be of several images: a.jpg of cam1/a.jpg and cam2/a.jpg",)


@pytest.mark.parametrize("name", ["cam1/c.jpg", "../val/c.jpg", "/etc/passwd", "http://x/c.jpg"])
def test_name_without_a_file_is_unchanged(images: Path, name: str) -> None:
    found = _read(images, _changed("images", {"file_name": name}))
    assert found.file_names == [name, "b.jpg"]
    assert found.notes == ()


def test_name_on_disk_in_another_encoding_is_found(images: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (images / "a.jpg").rename(images / name)
    for written in ("caf\xe9.jpg", name):  # json.dumps writes the second as "\udce9".
        found = _read(images, _changed("images", {"file_name": written}))
        assert found.file_names == [name, "b.jpg"]
