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
    return Categories.from_coco([{"id": i, "name": f"category {i}"} for i in ids], "a file")


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


def _named(**names: int) -> Categories:
    return Categories.from_coco([{"id": i, "name": name} for name, i in names.items()], "a file")


@pytest.mark.parametrize(
    ("own", "labels"),
    [
        ({"cat": 1, "dog": 2, "owl": 3}, {1: 1, 2: 2, 3: 3}),
        ({"owl": 1, "cat": 2, "dog": 3}, {1: 3, 2: 1, 3: 2}),  # another order
        ({"cat": 0, "dog": 1, "owl": 2}, {0: 1, 1: 2, 2: 3}),  # numbered from 0
        ({"owl": 1, "dog": 2}, {1: 3, 2: 2}),  # one class fewer, numbered again
        ({"owl": 3}, {3: 3}),
        ({" Cat": 500, "DOG": 70}, {500: 1, 70: 2}),
    ],
)
def test_classes_are_matched_by_name(own: dict[str, int], labels: dict[int, int]) -> None:
    trained = _named(cat=1, dog=2, owl=3)
    matched = _named(**own).labelled_as(trained, own="val", theirs="train")
    assert matched.num_classes == 3
    assert {i: matched.label_of(i) for i in labels} == labels
    ids = np.array(sorted(labels))
    assert matched.labels_of(ids).tolist() == [labels[i] for i in ids.tolist()]
    assert matched.categories_of(matched.labels_of(ids)).tolist() == ids.tolist()
    for label in {1, 2, 3} - set(labels.values()):  # a detector predicts it all the same
        assert not matched.known(matched.categories_of(np.array([label]))).any()
        assert matched.name_of(label) == trained.name_of(label)
    assert matched.of_detector == trained


def test_equal_categories_stay_as_they_are() -> None:
    categories = _categories(COCO_IDS)
    assert categories.labelled_as(categories, own="val", theirs="train") == categories
    some = _categories(COCO_IDS[::9]).labelled_as(categories, own="val", theirs="train")
    assert some.num_classes == 90
    assert all(some.label_of(i) == i for i in some.ids)
    twins = Categories(ids=(1, 2, 3), names=("thing", "thing", "other"))
    assert twins.labelled_as(twins, own="val", theirs="train") == twins
    assert Categories((2,), ("thing",)).labelled_as(twins, own="v", theirs="t").label_of(2) == 2


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"cat": 1, "hound": 2, "owl": 3}, "only the first has 'hound'; id 2 is 'hound' and 'dog'"),
        ({"cat": 1, "dog": 2, "owl": 3, "emu": 4}, "only the first has 'emu'; "),
        ({"cat": 1, "Cat": 2}, "id 2 is 'Cat' and 'dog'"),
    ],
)
def test_other_classes_are_refused(own: dict[str, int], message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        _named(**own).labelled_as(_named(cat=1, dog=2, owl=3), own="val", theirs="train")
    assert str(caught.value).startswith("val has other classes than train: ")
    assert message in str(caught.value)


def test_an_id_with_two_names_is_refused() -> None:
    twice = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    with pytest.raises(DatasetError, match="a file: the category id 1 has two names, 'cat' and"):
        Categories.from_coco(twice, "a file")
    assert Categories.from_coco([twice[0], twice[0]], "a file").ids == (1,)


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
