import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from cocodata import DatasetError, load_split, splits
from cocodata.format.annotations import read_annotations
from cocodata.format.json_text import without_polygons

number = st.integers(-9, 9) | st.floats(-1e3, 1e3, allow_nan=False)
polygons = st.lists(st.lists(number, max_size=4), max_size=3)
# Text that looks like polygons must not be taken for them.
text = st.text() | st.sampled_from(['"segmentation": [[1]]', "segmentation", "]", "}", '":['])
annotation = st.fixed_dictionaries(
    {"id": number},
    optional={
        "segmentation": polygons
        | st.fixed_dictionaries({"counts": st.lists(number) | text, "size": st.lists(number)}),
        "note": text,
        "bbox": st.lists(number, max_size=4),
    },
)


@given(st.lists(annotation, max_size=5), st.booleans(), text)
def test_removing_polygons_changes_nothing_else(
    annotations: list[dict[str, Any]], indented: bool, last: str
) -> None:
    tree = {"annotations": annotations, "last": last}
    content = json.dumps(tree, indent=2 if indented else None).encode()
    for entry in annotations:
        if isinstance(entry.get("segmentation"), list):
            entry["segmentation"] = 0
    assert orjson.loads(without_polygons(content)) == tree


def _agrees_with_pycocotools(data: Path) -> None:
    for name in splits(data):
        split = load_split(data, name)
        coco = COCO(str(split.annotation_file))
        assert split.image_ids.tolist() == sorted(coco.getImgIds())
        for index, image_id in enumerate(split.image_ids.tolist()):
            info = coco.imgs[image_id]
            assert split.file_names[index] == info["file_name"]
            assert split.sizes[index].tolist() == [info["width"], info["height"]]
            entries = [
                entry
                for entry in coco.loadAnns(coco.getAnnIds(imgIds=[image_id], iscrowd=False))
                if entry["bbox"][2] >= 1 and entry["bbox"][3] >= 1
            ]
            expected = [(y, x, y + h, x + w) for x, y, w, h in (e["bbox"] for e in entries)]
            boxes, labels = split.targets(index)
            np.testing.assert_array_equal(
                boxes, np.array(expected, dtype=np.float32).reshape(-1, 4)
            )
            assert [split.categories.category_of(label) for label in labels.tolist()] == [
                entry["category_id"] for entry in entries
            ]


def test_split_agrees_with_pycocotools(generated: Path) -> None:
    _agrees_with_pycocotools(generated)


def test_split_of_real_images_agrees_with_pycocotools(coco_tiny: Path) -> None:
    _agrees_with_pycocotools(coco_tiny)


def test_targets_are_those_of_effdet(coco_tiny: Path) -> None:
    from effdet.data.parsers.parser_coco import CocoParser
    from effdet.data.parsers.parser_config import CocoParserCfg

    for name in splits(coco_tiny):
        split = load_split(coco_tiny, name)
        parser = CocoParser(CocoParserCfg(ann_filename=str(split.annotation_file)))
        assert parser.img_ids == split.image_ids.tolist()
        for index in range(len(split)):
            theirs = parser.get_ann_info(index)
            boxes, labels = split.targets(index)
            np.testing.assert_array_equal(boxes, theirs["bbox"])
            np.testing.assert_array_equal(labels, theirs["cls"])


GOOD: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    "categories": [{"id": 1, "name": "disc"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no list named images"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no usable file_name"),
        (
            {"images": [*GOOD["images"], {**GOOD["images"][0], "width": "wide"}]},
            r"images\[1\] has no usable width and height",
        ),
        ({"images": [{**GOOD["images"][0], "file_name": 3}]}, "no usable file_name"),
        ({"annotations": [{"image_id": 1, "category_id": 1}]}, r"annotations\[0\] has no usable"),
        ({"annotations": [{**GOOD["annotations"][0], "bbox": [1, 2]}]}, "must be"),
        ({"annotations": [{**GOOD["annotations"][0], "bbox": ["a", 1, 1, 1]}]}, "must be"),
        ({"annotations": [3]}, r"annotations\[0\] has no usable"),
        ({"categories": [{"id": 1}]}, r"categories\[0\] has no usable id and name"),
    ],
)
def test_file_not_in_coco_format_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(DatasetError, match=message) as caught:
        read_annotations(path, tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not JSON"), ("{", "not JSON"), ("[]", "contains a list"), ("<html>", "not JSON")],
)
def test_file_without_a_json_object_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_annotations(path, tmp_path)


def test_file_without_annotations_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    found = read_annotations(path, tmp_path)
    assert found.boxes.shape == (0, 4)
    assert found.sizes.shape == (0, 2)


def test_areas_and_crowds_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    entry = GOOD["annotations"][0]
    entries = [{**entry, "area": 12.5, "iscrowd": 1}, {**entry, "ignore": 1}, {**entry, "area": 3}]
    path.write_text(json.dumps({**GOOD, "annotations": entries}))
    found = read_annotations(path, tmp_path)
    np.testing.assert_array_equal(found.areas, [12.5, np.nan, 3])
    assert found.crowds.tolist() == [True, False, False]
    assert found.ignored.tolist() == [True, True, False]
