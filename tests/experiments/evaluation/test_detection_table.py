"""The detection table on one or several ranks, and the file of COCO results."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch._subclasses.fake_tensor import FakeTensorMode

from cocodata import Categories, Split
from experiments.evaluation import (
    CocoGroundTruth,
    Detections,
    DetectionTable,
    coco_metrics,
    write_coco_results,
)
from experiments.runtime.communication import SingleProcess, TorchCommunicator
from tests.experiments.evaluation.synthetic_coco import (
    Row,
    noisy_detections,
    pycocotools_metrics,
    to_batch,
    write_split,
)

CATEGORIES = Categories(ids=(7, 20, 300), names=("cat", "dog", "owl"))


def gather(*batches: tuple[list[int], list[Row]]) -> Detections:
    table = DetectionTable()
    for image_ids, rows in batches:
        table.add(*to_batch(image_ids, rows))
    return table.gather(SingleProcess(), CATEGORIES)


def synthetic_split(folder: Path) -> Split:
    generator = np.random.default_rng(0)
    image_ids = sorted(generator.choice(1000, 20, replace=False).tolist())
    annotations = []
    for _ in range(60):
        box = generator.integers(8, 200, 4).tolist()
        annotations.append(
            {
                "image_id": int(generator.choice(image_ids)),
                "category_id": int(generator.choice(CATEGORIES.ids)),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(generator.random() < 0.1),
            }
        )
    return write_split(folder, image_ids, CATEGORIES.ids, annotations)


def test_adding_a_batch_does_not_wait_for_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors refuse what depends on values, such as the number of detections."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # fake tensors would set it
    with FakeTensorMode():
        DetectionTable().add(torch.arange(2), torch.rand(2, 100, 6, device="cuda"))


def assert_equal(one: Detections, other: Detections) -> None:
    for name in ("evaluated", "image_ids", "boxes", "scores", "category_ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_detections_are_ordered_by_image_and_then_as_detected() -> None:
    detections = gather(
        ([9, 4], [(9, 1, 2, 4, 8, 0.5, 1), (4, 0, 0, 1, 1, 0.25, 3), (4, 5, 5, 6, 7, 0.25, 2)]),
        ([6, 5], [(5, 2, 2, 3, 3, 0.75, 1)]),
    )
    assert detections.evaluated.tolist() == [4, 5, 6, 9]
    assert detections.image_ids.tolist() == [4, 4, 5, 9]
    assert detections.category_ids.tolist() == [300, 20, 7, 7]
    assert detections.scores.tolist() == [0.25, 0.25, 0.75, 0.5]
    assert detections.boxes.tolist() == [[0, 0, 1, 1], [5, 5, 1, 2], [2, 2, 1, 1], [1, 2, 3, 6]]


def test_low_scores_are_dropped_and_large_ids_kept_exactly() -> None:
    large = 2**53 + 1  # not representable in float64
    detections = gather(([large], [(large, 0, 0, 1, 1, 0.0009, 1), (large, 0, 0, 1, 1, 0.0011, 1)]))
    assert detections.image_ids.tolist() == detections.evaluated.tolist() == [large]


def test_an_empty_table() -> None:
    detections = gather()
    assert len(detections) == len(detections.evaluated) == 0
    assert detections.boxes.shape == (0, 4)


def test_a_batch_is_copied() -> None:
    image_ids, detections = to_batch([1], [(1, 3, 4, 5, 6, 0.5, 1)])
    before = detections.clone()
    table = DetectionTable()
    table.add(image_ids, detections)
    first = table.gather(SingleProcess(), CATEGORIES)
    detections.zero_()  # as a CUDA graph overwrites its output
    assert_equal(table.gather(SingleProcess(), CATEGORIES), first)
    assert first.boxes.tolist() == [[3, 4, 2, 2]]
    assert before[0, 0, 4] == 0.5


def test_a_repeated_image_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"1 image\(s\) were evaluated more than once.* image 4"):
        gather(([4, 5], []), ([4], []))


def test_an_invalid_label_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"label 4, but the data set has labels 1 to 3"):
        gather(([1], [(1, 0, 0, 1, 1, 0.5, 4)]))


def test_wrong_shapes_are_an_error() -> None:
    table = DetectionTable()
    with pytest.raises(ValueError, match=r"must be \(N, K, 6\), not \(3, 6\)"):
        table.add(torch.tensor([1]), torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"image ids of shape \(1,\) do not match"):
        table.add(torch.tensor([1]), torch.zeros(2, 3, 6))


def shards(
    split: Split, rows: list[Row], ranks: int, sharding: str
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return each rank's batches; images are distributed evenly, or the last rank has none."""
    ranks_with_images = ranks if sharding == "even" else ranks - 1
    batches = []
    for rank in range(ranks):
        shard = split.image_ids.tolist()[rank::ranks_with_images]
        shard = shard[::-1] if rank < ranks_with_images else []  # not in order of ids
        batches.append([to_batch(shard[at : at + 3], rows) for at in range(0, len(shard), 3)])
    return batches


def gather_on_rank(rank: int, ranks: int, folder: Path, batches_of: dict[str, list]) -> None:
    """Run by each process: add a shard, and gather with the others."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=ranks
    )
    for sharding, batches in batches_of.items():
        table = DetectionTable()
        for batch in batches[rank]:
            table.add(*batch)
        detections = table.gather(TorchCommunicator(), CATEGORIES)
        torch.save(detections, folder / f"{sharding} {rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_tables_and_metrics_do_not_depend_on_the_ranks(tmp_path: Path, ranks: int) -> None:
    split = synthetic_split(tmp_path / "data")
    rows = noisy_detections(split, seed=0, score_steps=4)
    expected = gather((split.image_ids.tolist(), rows))
    metrics = coco_metrics(CocoGroundTruth(split), expected)
    assert 0 < metrics.metrics["AP"] < 1
    shardings = ["even", "last rank has none"]
    batches_of = {each: shards(split, rows, ranks, each) for each in shardings}
    torch.multiprocessing.spawn(gather_on_rank, (ranks, tmp_path, batches_of), nprocs=ranks)
    for sharding in shardings:
        for rank in range(ranks):
            detections = torch.load(tmp_path / f"{sharding} {rank}.pt", weights_only=False)
            assert_equal(detections, expected)
            assert coco_metrics(CocoGroundTruth(split), detections) == metrics


def test_pycocotools_computes_the_same_metrics_from_the_file(tmp_path: Path) -> None:
    split = synthetic_split(tmp_path)
    detections = gather((split.image_ids.tolist(), noisy_detections(split, seed=0)))
    path = tmp_path / "new folder" / "detections.json"
    write_coco_results(path, detections)
    stats, _ = pycocotools_metrics(split, path)
    metrics = coco_metrics(CocoGroundTruth(split), detections).metrics
    np.testing.assert_allclose(list(metrics.values()), stats, rtol=0, atol=1e-9)
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(split.annotation_file)).loadRes(str(path)).dataset["annotations"]
    assert [each["image_id"] for each in read] == detections.image_ids.tolist()
    assert [each["category_id"] for each in read] == detections.category_ids.tolist()
    assert [each["bbox"] for each in read] == detections.boxes.tolist()
    assert [each["score"] for each in read] == detections.scores.tolist()
    assert [each.name for each in path.parent.iterdir()] == ["detections.json"]


def test_results_name_images_as_the_annotations_do(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    rows: list[Row] = [(image, 0, 0, 1, 1, 0.5, 1) for image in (1, 2, 3)]
    write_coco_results(path, gather(([1, 2, 3], rows)), original_ids={1: "seq_7", 2: 2**70})
    assert [each["image_id"] for each in json.loads(path.read_text())] == ["seq_7", 2**70, 3]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_chunks_form_one_json_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("experiments.evaluation.detections._ROWS_PER_WRITE", 2)
    rows: list[Row] = [(1, n, n, n + 1, n + 2, 0.5, 1) for n in range(count)]
    path = tmp_path / "detections.json"
    write_coco_results(path, gather(([1], rows)))
    assert [each["bbox"] for each in json.loads(path.read_text())] == [
        [n, n, 1, 2] for n in range(count)
    ]


def test_a_failed_write_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "detections.json"
    path.write_text("before")

    def fail(_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("experiments.evaluation.detections.orjson.dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        write_coco_results(path, gather(([1], [(1, 0, 0, 1, 1, 0.5, 1)])))
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["detections.json"]
