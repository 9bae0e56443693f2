"""Anchors and target assignment against effdet 0.4.1."""

import pytest
import torch
from effdet.anchors import AnchorLabeler, Anchors
from effdet.config import get_efficientdet_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import Targets, detector_config, list_detectors
from model.detection.anchors import anchor_boxes
from model.detection.targets import assign_targets

NAMES = [name for name in list_detectors() if name != "tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_anchors_are_the_oracles(name: str) -> None:
    expected = Anchors.from_config(get_efficientdet_config(name)).boxes
    # Where an aspect ratio is a number, the oracle takes its root in another precision.
    torch.testing.assert_close(anchor_boxes(detector_config(name)), expected, rtol=0, atol=1e-3)


def oracle_targets(image_size: tuple[int, int], boxes: Tensor, labels: Tensor) -> Targets:
    config = get_efficientdet_config("efficientdet_d0")
    config.image_size = image_size
    labeler = AnchorLabeler(Anchors.from_config(config), config.num_classes)
    classes, codes, positives = labeler.batch_label_anchors(boxes, labels)
    return Targets(
        torch.cat([x.flatten(1) for x in classes], 1),
        torch.cat([x.flatten(1).unflatten(1, (-1, 4)) for x in codes], 1),
        positives,
    )


def assert_targets_are_the_oracles(
    image_size: tuple[int, int], boxes: Tensor, labels: Tensor
) -> Targets:
    anchors = anchor_boxes(detector_config("efficientdet_d0", image_size=image_size))
    actual = assign_targets(anchors, boxes, labels)
    expected = oracle_targets(image_size, boxes, labels)
    assert actual.class_targets.dtype == torch.int64
    assert torch.equal(actual.class_targets, expected.class_targets)
    assert torch.equal(actual.num_positives, expected.num_positives)
    torch.testing.assert_close(actual.box_targets, expected.box_targets, rtol=1e-6, atol=1e-6)
    return actual


# Corners on a coarse grid make ties, shared best anchors and boxes without area common.
coordinate = st.integers(0, 32).map(lambda i: 8.0 * i) | st.floats(0, 256, width=32)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    num_images, num_rows = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    boxes, labels = [], []
    for _ in range(num_images * num_rows):
        y, x = (
            sorted((draw(coordinate), draw(coordinate))),
            sorted((draw(coordinate), draw(coordinate))),
        )
        label = draw(st.integers(1, 90) | st.just(-1))
        boxes.append([y[0], x[0], y[1], x[1]] if label > 0 else [-1.0] * 4)
        labels.append(label)
    if num_rows > 1 and draw(st.booleans()):
        boxes[1] = boxes[0] if labels[1] > 0 and labels[0] > 0 else boxes[1]
    shape = (num_images, num_rows)
    return torch.tensor(boxes).view(*shape, 4), torch.tensor(labels).view(shape)


@settings(max_examples=150, deadline=None)
@given(batch=batches(), image_size=st.sampled_from([(128, 256), (256, 128)]))
def test_targets_are_the_oracles(batch: tuple[Tensor, Tensor], image_size: tuple[int, int]) -> None:
    assert_targets_are_the_oracles(image_size, *batch)


def test_many_boxes_and_empty_images() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(4, 100, 2, generator=generator) * 200
    size = torch.rand(4, 100, 2, generator=generator) ** 3 * 250 + 1
    boxes = torch.cat([corner, corner + size], -1)
    labels = torch.randint(1, 91, (4, 100), generator=generator)
    labels[1] = -1
    labels[2, 3:] = -1
    labels[3, ::2] = -1
    boxes[labels < 0] = -1.0
    targets = assert_targets_are_the_oracles((256, 384), boxes, labels)
    assert targets.num_positives[1] == 0
    assert (targets.num_positives[[0, 2, 3]] >= torch.tensor([50.0, 3.0, 30.0])).all()


def test_padding_changes_nothing() -> None:
    anchors = anchor_boxes(detector_config("efficientdet_d0", image_size=(256, 256)))
    boxes = torch.tensor([[[10.0, 20.0, 90.0, 110.0], [40.0, 40.0, 44.0, 44.0]]])
    labels = torch.tensor([[3, 7]])
    padding = torch.full((1, 98, 4), 60.0)
    padding[..., 2:] = 140.0  # a padding row may contain anything
    padded = assign_targets(
        anchors, torch.cat([boxes, padding], 1), torch.cat([labels, torch.full((1, 98), -1)], 1)
    )
    for expected, actual in zip(assign_targets(anchors, boxes, labels), padded, strict=True):
        assert torch.equal(actual, expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = anchor_boxes(detector_config("efficientdet_d0", image_size=(256, 256)))
    boxes = torch.tensor(
        [[[0.0, 0.0, 256.0, 256.0], [0.0, 0.0, 0.0, 0.0], [64.0, 64.0, 96.0, 96.0]]]
    )
    labels = torch.tensor([[1, 2, 3]])
    monkeypatch.setattr("model.detection.targets._CPU_PAIRS", 10**9)
    whole = assign_targets(anchors, boxes, labels)
    for pairs in (1000, 37 * 3):
        monkeypatch.setattr("model.detection.targets._CPU_PAIRS", pairs)
        for expected, actual in zip(whole, assign_targets(anchors, boxes, labels), strict=True):
            assert torch.equal(actual, expected)


def test_no_boxes_at_all() -> None:
    anchors = anchor_boxes(detector_config("tiny"))
    targets = assign_targets(anchors, torch.zeros(2, 0, 4), torch.zeros(2, 0))
    assert (targets.class_targets == -1).all()
    assert not targets.box_targets.any()
    assert targets.num_positives.tolist() == [0.0, 0.0]
