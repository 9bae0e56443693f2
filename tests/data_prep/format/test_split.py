import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocodata import Categories, DatasetError, load_split, splits

COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def _categories(ids: list[int]) -> Categories:
    return Categories.from_coco([{"id": i, "name": f"category {i}"} for i in ids])


def test_ids_of_coco_are_its_labels() -> None:
    categories = _categories(COCO_IDS)
    assert categories.num_classes == 90
    assert categories.label_of(90) == 90
    # One of the ten that no category uses: a detector may predict it all the same.
    assert categories.category_of(12) == 12
    assert categories.name_of(12) == "class 12"
    with pytest.raises(KeyError, match="no category has the id 12"):
        categories.label_of(12)


@pytest.mark.parametrize("ids", [[0, 1, 2], [7, 300, 4000], [-1, 5]])
def test_other_ids_are_numbered(ids: list[int]) -> None:
    categories = _categories(ids)
    assert categories.num_classes == len(ids)
    assert [categories.label_of(i) for i in ids] == [1, 2, 3][: len(ids)]
    with pytest.raises(IndexError, match=f"not in 1..{len(ids)}"):
        categories.category_of(len(ids) + 1)


@given(st.sets(st.integers(-5, 200), min_size=1, max_size=40))
def test_labels_and_categories_are_inverse(ids: set[int]) -> None:
    categories = _categories(sorted(ids, reverse=True))
    array = np.array(sorted(ids))
    labels = categories.labels_of(array)
    assert labels.tolist() == [categories.label_of(i) for i in array.tolist()]
    assert labels.min() >= 1
    assert labels.max() <= categories.num_classes
    assert categories.categories_of(labels).tolist() == array.tolist()
    assert [categories.category_of(label) for label in labels.tolist()] == array.tolist()
    assert [categories.name_of(label) for label in labels.tolist()] == [
        f"category {i}" for i in array.tolist()
    ]


def test_select_keeps_images_and_their_boxes(generated: Path) -> None:
    split = load_split(generated, "train2017")
    keep = np.random.default_rng(0).random(len(split)) < 0.5
    chosen = split.select(keep)
    assert chosen.image_ids.tolist() == split.image_ids[keep].tolist()
    assert chosen.file_names == [split.file_names[i] for i in np.flatnonzero(keep)]
    for index, original in enumerate(np.flatnonzero(keep).tolist()):
        for mine, theirs in zip(chosen.targets(index), split.targets(original), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="the mask has shape"):
        split.select(keep[1:])


def test_splits_are_found_by_their_annotation_files(generated: Path, tmp_path: Path) -> None:
    assert splits(generated) == ("train2017", "val2017")
    with pytest.raises(DatasetError, match="the folder does not exist"):
        splits(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"no folder named annotations \(it holds photos\)"):
        splits(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_train2017.json").touch()
    with pytest.raises(DatasetError, match=r"holds captions_train2017\.json"):
        splits(tmp_path)
    for name in ("train2017", "train2014", "val2017"):
        (tmp_path / "annotations" / f"instances_{name}.json").touch()
    with pytest.raises(DatasetError, match="2 annotation files instances_train"):
        splits(tmp_path)


def test_contradicting_ids_are_refused_or_left_out(generated: Path, tmp_path: Path) -> None:
    shutil.copytree(generated / "annotations", tmp_path / "annotations")
    path = tmp_path / "annotations" / "instances_train2017.json"
    tree = json.loads(path.read_text())
    usable = len(load_split(tmp_path, "train2017").boxes)
    single = [a for a in tree["annotations"] if not a["iscrowd"]]
    single[0]["image_id"] = 5
    single[1]["category_id"] = 99
    path.write_text(json.dumps(tree))
    with pytest.raises(DatasetError, match="1 boxes have unknown images, 1 have unknown categ"):
        load_split(tmp_path, "train2017")
    assert len(load_split(tmp_path, "train2017", strict=False).boxes) == usable - 2
