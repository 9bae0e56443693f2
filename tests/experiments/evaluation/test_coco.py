"""COCO metrics compared with pycocotools."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocodata import Split, load_split, splits
from experiments.evaluation import CocoGroundTruth, CocoResult, DetectionTable
from experiments.evaluation import coco_metrics as compute_metrics
from experiments.runtime.communication import SingleProcess
from reporting.coco_metrics import METRICS
from tests.experiments.evaluation.synthetic_coco import (
    Row,
    noisy_detections,
    pycocotools_metrics,
    pycocotools_results,
    to_batch,
    write_split,
)

TOLERANCE = 1e-9


def coco_metrics(split: Split, rows: list[Row]) -> CocoResult:
    table = DetectionTable()
    table.add(*to_batch(split.image_ids.tolist(), rows))
    return compute_metrics(CocoGroundTruth(split), table.gather(SingleProcess(), split.categories))


def assert_equals_pycocotools(split: Split, rows: list[Row]) -> CocoResult:
    result = coco_metrics(split, rows)
    stats, ap_per_class = pycocotools_metrics(split, pycocotools_results(split, rows))
    assert tuple(result.metrics) == METRICS
    np.testing.assert_allclose(list(result.metrics.values()), stats, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        list(result.ap_per_class.values()), ap_per_class, rtol=0, atol=TOLERANCE
    )
    return result


def truth(image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0} | (
        more
    )


@pytest.mark.parametrize("score_steps", [5, 1000])
def test_noisy_detections_of_real_images(coco_tiny: Path, score_steps: int) -> None:
    split = load_split(coco_tiny, splits(coco_tiny)[1])
    annotations = json.loads(split.annotation_file.read_text())["annotations"]
    assert any(each["iscrowd"] for each in annotations)  # so that crowds are tested
    result = assert_equals_pycocotools(
        split, noisy_detections(split, seed=1, score_steps=score_steps)
    )
    assert 0.1 < result.metrics["AP50"] < 0.95


def test_a_subset_of_the_images(coco_tiny: Path) -> None:
    split = load_split(coco_tiny, splits(coco_tiny)[1])
    subset = split.select(split.image_ids % 2 == 0)
    complete = coco_metrics(split, noisy_detections(split, seed=2)).metrics
    result = assert_equals_pycocotools(subset, noisy_detections(subset, seed=2))
    assert result.metrics != complete
    assert -1.0 in result.ap_per_class.values()  # classes that are only in other images


def test_no_detections(tmp_path: Path) -> None:
    split = write_split(tmp_path, [3, 5], [1, 2], [truth(3, 1, [10, 10, 50, 50])])
    assert assert_equals_pycocotools(split, []).metrics["AP"] == 0


def test_no_annotations(tmp_path: Path) -> None:
    split = write_split(tmp_path, [3, 5], [1, 2], [])
    result = assert_equals_pycocotools(split, [(3, 0, 0, 10, 10, 0.5, 1)])
    assert set(result.metrics.values()) == {-1.0}


def test_more_than_a_hundred_detections_of_a_class_in_an_image(tmp_path: Path) -> None:
    split = write_split(tmp_path, [1], [1], [truth(1, 1, [10, 10, 50, 50])])
    wrong: list[Row] = [(1, 300, 300, 340, 340, 0.9, 1)] * 100
    right: Row = (1, 10, 10, 60, 60, 0.8, 1)
    assert assert_equals_pycocotools(split, [*wrong, right]).metrics["AP"] == 0
    assert assert_equals_pycocotools(split, [*wrong[1:], right]).metrics["AP"] > 0


def test_detections_with_equal_scores_are_matched_in_order(tmp_path: Path) -> None:
    split = write_split(tmp_path, [1], [1], [truth(1, 1, [10, 10, 50, 50])])
    right: Row = (1, 10, 10, 60, 60, 0.5, 1)
    wrong: Row = (1, 300, 300, 340, 340, 0.5, 1)
    first = assert_equals_pycocotools(split, [right, wrong]).metrics["AP"]
    second = assert_equals_pycocotools(split, [wrong, right]).metrics["AP"]
    assert first == pytest.approx(1)
    assert second == pytest.approx(0.5)


def test_crowds_match_any_number_of_detections(tmp_path: Path) -> None:
    split = write_split(
        tmp_path,
        [1],
        [1],
        [
            truth(1, 1, [10, 10, 50, 50]),
            truth(1, 1, [200, 200, 200, 200], iscrowd=1),
            # pycocotools overwrites `ignore` with `iscrowd`
            truth(1, 1, [500, 10, 40, 40], ignore=1),
        ],
    )
    in_crowd: list[Row] = [(1, 210 + n, 210, 260 + n, 260, 0.95, 1) for n in range(5)]
    result = assert_equals_pycocotools(split, [*in_crowd, (1, 10, 10, 60, 60, 0.5, 1)])
    # Detections in the crowd are ignored; the box marked `ignore` counts as missed.
    assert result.metrics["AR100"] == pytest.approx(0.5)
    assert result.metrics["AP50"] == pytest.approx(51 / 101)


BOXES = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 14)] * 2).map(
    # On a coarse grid, so that IoUs of exactly .5 and .75 and equal IoUs occur.
    lambda box: [8.0 * value for value in box]
)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[int], list[int], list[dict[str, Any]], list[Row]]:
    image_ids = draw(st.lists(st.integers(1, 2**40), min_size=1, max_size=5, unique=True))
    category_ids = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True))
    annotations = draw(
        st.lists(
            st.builds(
                lambda image, category, box, area_ratio, crowd, ignore: truth(
                    image,
                    category,
                    box,
                    area=box[2] * box[3] * area_ratio,
                    iscrowd=int(crowd),
                    ignore=int(ignore),
                ),
                st.sampled_from(image_ids),
                st.sampled_from(category_ids),
                BOXES,
                st.sampled_from([0.2, 0.7, 1.0]),
                st.booleans(),
                st.booleans(),
            ),
            max_size=12,
        )
    )
    detections = draw(
        st.lists(
            st.tuples(
                st.sampled_from(image_ids),
                st.sampled_from(category_ids),
                BOXES,
                st.sampled_from([0.0005, 0.001, 0.25, 0.5, 0.5001, 1.0]),
                st.none() | st.integers(0, 11),
            ),
            max_size=25,
        )
    )
    rows = []
    for image, category, box, score, copied in detections:
        random_box = truth(image, category, box)
        is_copy = copied is not None and copied < len(annotations)
        source = annotations[copied] if is_copy else random_box
        x, y, width, height = source["bbox"]
        position = (source["image_id"], x, y, x + width, y + height)
        rows.append((*position, score, source["category_id"]))
    return image_ids, category_ids, annotations, rows


@given(dataset=datasets())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_data_sets(tmp_path: Path, dataset: tuple[Any, ...]) -> None:
    image_ids, category_ids, annotations, rows = dataset
    split = write_split(tmp_path, image_ids, category_ids, annotations)
    label = {category: split.categories.label_of(category) for category in category_ids}
    assert_equals_pycocotools(split, [(*row[:6], label[row[6]]) for row in rows])


def test_detections_without_a_category_do_not_count(tmp_path: Path) -> None:
    # The categories 1 and 3 need labels 1 to 3; label 2 has no category.
    split = write_split(tmp_path, [1], [1, 3], [truth(1, 3, [10, 10, 50, 50])])
    rows: list[Row] = [(1, 10, 10, 60, 60, 0.9, 2), (1, 10, 10, 60, 60, 0.8, 3)]
    result = assert_equals_pycocotools(split, rows)
    assert result.ap_per_class == {"thing 1": -1.0, "thing 3": pytest.approx(1)}
    assert result.num_detections == 1


def test_area_and_iscrowd_are_optional(tmp_path: Path) -> None:
    plain = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50]}
    split = write_split(tmp_path, [1], [1], [plain])
    metrics = coco_metrics(split, [(1, 10, 10, 60, 60, 0.9, 1)]).metrics
    assert metrics["APm"] == pytest.approx(1)  # an area of 2500 is medium
    assert metrics["APs"] == metrics["APl"] == -1


def test_categories_with_the_same_name_are_distinguished(tmp_path: Path) -> None:
    split = write_split(tmp_path, [1], [1, 2], [truth(1, 2, [10, 10, 50, 50])])
    text = split.annotation_file.read_text().replace("thing 2", "thing 1")
    split.annotation_file.write_text(text)
    result = coco_metrics(load_split(tmp_path, "val"), [])
    assert result.ap_per_class == {"thing 1 (1)": -1.0, "thing 1 (2)": 0.0}


def test_missing_images_are_an_error(tmp_path: Path) -> None:
    split = write_split(tmp_path, [1, 2, 9], [1], [])
    table = DetectionTable()
    table.add(*to_batch([1], []))
    with pytest.raises(ValueError, match=r"2 of the 3 images of val .* image 2"):
        compute_metrics(CocoGroundTruth(split), table.gather(SingleProcess(), split.categories))


def test_images_of_another_split_are_an_error(tmp_path: Path) -> None:
    split = write_split(tmp_path, [1, 2], [1], [])
    table = DetectionTable()
    table.add(*to_batch([1, 2, 7], []))
    with pytest.raises(ValueError, match=r"not in val.* image 7"):
        compute_metrics(CocoGroundTruth(split), table.gather(SingleProcess(), split.categories))


def test_the_result_round_trips_through_json(tmp_path: Path) -> None:
    split = write_split(tmp_path, [1], [1, 3], [truth(1, 3, [10, 10, 50, 50])])
    result = coco_metrics(split, [(1, 11, 13, 60, 60, 0.9, 3)])
    assert CocoResult(**json.loads(json.dumps(result.as_dict()))) == result
