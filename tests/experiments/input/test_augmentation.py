"""Geometry and boxes compared with effdet's transforms, given the same random draws."""

from types import SimpleNamespace

import effdet.data.transforms as peer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.input.augmentation import (
    MAX_BOXES,
    geometry_from_draws,
    letterbox_geometry,
    random_geometry,
    sample_generator,
    transform_boxes,
)
from experiments.input.input_config import InputConfig


class Draws:
    """Stands in for the module `random`, with given draws from [0, 1)."""

    def __init__(self, draws):
        self.draws = [float(draw) for draw in draws]

    def random(self):
        return self.draws.pop(0)

    def uniform(self, low, high):
        return low + (high - low) * self.random()

    def choice(self, options):
        return options[int(self.random() * len(options))]


class SizeOnlyImage(SimpleNamespace):
    """Stands in for an image; it records operations on its size."""

    def resize(self, size, interpolation):
        return SizeOnlyImage(size=size, resized=size, interpolation=interpolation)

    def transpose(self, _):
        return self

    def crop(self, window):
        self.window = window
        Canvas.pasted = self
        return self


class Canvas:
    pasted = None

    def paste(self, image):
        Canvas.pasted = image


@pytest.fixture(scope="module")
def peer_without_pixels():
    """effdet's transforms, without pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer.Image, "new", lambda *_, **__: Canvas())
        yield peer


units = st.floats(0, 1, exclude_max=True)
sides = st.integers(1, 1500)


@st.composite
def boxes_within(draw, width, height):
    count = draw(st.integers(0, 6))
    corners = [sorted(draw(st.lists(units, min_size=2, max_size=2))) for _ in range(2 * count)]
    boxes = np.array(corners, np.float64).reshape(count, 2, 2).transpose(0, 2, 1).reshape(count, 4)
    return (boxes * [height, width, height, width]).astype(np.float32)


@st.composite
def samples(draw):
    width, height = draw(sides), draw(sides)
    boxes = draw(boxes_within(width, height))
    return width, height, boxes, draw(st.lists(units, min_size=5, max_size=5))


input_sizes = st.tuples(st.sampled_from([128, 384, 640]), st.sampled_from([128, 512]))


@given(sample=samples(), input_size=input_sizes)
def test_training_geometry_equals_effdets(sample, input_size, peer_without_pixels):
    width, height, boxes, draws = sample
    config = InputConfig(input_size, interpolation="random")
    geometry = geometry_from_draws(config, np.array([[width, height]]), np.array([draws]))
    got_boxes, got_labels = transform_boxes(
        geometry, boxes, np.arange(len(boxes)) + 1, np.array([len(boxes)])
    )

    image, target = SizeOnlyImage(size=(width, height)), {"bbox": boxes.copy()}
    target["cls"] = np.arange(len(boxes)) + 1
    random_source, peer.random = peer.random, Draws(draws)
    try:
        flip = peer.RandomFlip(prob=0.5)
        jitter = peer.RandomResizePad(input_size, interpolation="random")
        _, target = jitter(*flip(image, target))
    finally:
        peer.random = random_source

    pasted = Canvas.pasted
    if min(pasted.resized) > 0:  # we keep at least one row and column
        assert tuple(geometry.scaled_size[0, ::-1]) == pasted.resized
        left, top, right, bottom = pasted.window
        assert tuple(geometry.offset[0]) == (top, left)
        assert tuple(geometry.visible_size[0]) == (bottom - top, right - left)
        count = len(target["bbox"])
        np.testing.assert_array_equal(got_boxes[0, :count], target["bbox"])
        np.testing.assert_array_equal(got_labels[0, :count], target["cls"])
        assert (got_boxes[0, count:] == -1).all()
        assert (got_labels[0, count:] == -1).all()
    assert 1 / geometry.scale[0] == target["img_scale"]
    assert bool(geometry.flip[0]) == (draws[0] < 0.5)
    assert geometry.interpolation[0] == [Image.BILINEAR, Image.BICUBIC].index(pasted.interpolation)


@given(sample=samples(), input_size=input_sizes)
def test_evaluation_geometry_equals_effdets(sample, input_size, peer_without_pixels):
    width, height, boxes, _ = sample
    geometry = letterbox_geometry(InputConfig(input_size), np.array([[width, height]]))
    got_boxes, _ = transform_boxes(
        geometry, boxes, np.ones(len(boxes), int), np.array([len(boxes)])
    )
    target = {"bbox": boxes.copy(), "cls": np.ones(len(boxes))}
    _, target = peer.ResizePad(input_size)(SizeOnlyImage(size=(width, height)), target)
    if min(Canvas.pasted.resized) > 0:
        assert tuple(geometry.scaled_size[0, ::-1]) == Canvas.pasted.resized
        np.testing.assert_array_equal(got_boxes[0, : len(target["bbox"])], target["bbox"])
        assert (got_boxes[0, len(target["bbox"]) :] == -1).all()
    assert 1 / geometry.scale[0] == target["img_scale"]


@given(batch=st.lists(samples(), min_size=1, max_size=5))
def test_a_batch_has_the_same_boxes_as_its_single_images(batch):
    config = InputConfig((256, 384))
    sizes = np.array([[width, height] for width, height, _, _ in batch])
    draws = np.array([draws for *_, draws in batch])
    counts = np.array([len(boxes) for _, _, boxes, _ in batch])
    boxes = np.concatenate([boxes for _, _, boxes, _ in batch])
    labels = np.arange(len(boxes)) + 1
    got = transform_boxes(geometry_from_draws(config, sizes, draws), boxes, labels, counts)
    first = 0
    for i, count in enumerate(counts):
        rows = slice(first, first + count)
        geometry = geometry_from_draws(config, sizes[i : i + 1], draws[i : i + 1])
        single = transform_boxes(geometry, boxes[rows], labels[rows], counts[i : i + 1])
        np.testing.assert_array_equal(got[0][i], single[0][0])
        np.testing.assert_array_equal(got[1][i], single[1][0])
        first += count


def test_the_first_hundred_visible_boxes_of_an_image_are_kept():
    config = InputConfig((128, 128))
    geometry = letterbox_geometry(config, np.array([[128, 128], [128, 128]]))
    inside = np.tile(np.array([[8, 8, 40, 40]], np.float32), (150, 1))
    outside = np.array([[200, 200, 210, 210]], np.float32)
    boxes = np.concatenate([outside, inside, inside[:3]])
    labels = np.arange(len(boxes))
    out_boxes, out_labels = transform_boxes(geometry, boxes, labels, np.array([151, 3]))
    assert out_boxes.shape == (2, MAX_BOXES, 4)
    np.testing.assert_array_equal(out_labels[0], np.arange(1, 101))
    np.testing.assert_array_equal(out_labels[1, :4], [151, 152, 153, -1])


@given(draws=st.lists(units, min_size=5, max_size=5), width=sides, height=sides)
def test_the_window_is_within_the_image(draws, width, height):
    geometry = geometry_from_draws(
        InputConfig((512, 512)), np.array([[width, height]]), np.array([draws])
    )
    start, end = geometry.source_window()
    extent = np.array([height, width])
    assert (geometry.visible_size >= 1).all()
    assert (start >= 0).all()
    assert (end >= 0).all()
    assert (start <= extent).all()
    assert (end <= extent).all()
    assert (start[0, 1] > end[0, 1]) == bool(geometry.flip[0])


def test_draws_depend_only_on_seed_epoch_and_image():
    config = InputConfig((512, 512), interpolation="random", seed=3)
    sizes = np.tile([[640, 480]], (4, 1))
    ids, epochs = np.array([7, 9, 7, 9]), np.array([0, 0, 1, 1])
    geometry = random_geometry(config, sizes, ids, epochs)
    assert len(set(geometry.scale.tolist())) == 4
    backwards = random_geometry(config, sizes, ids[::-1], epochs[::-1])
    np.testing.assert_array_equal(geometry.scale, backwards.scale[::-1])
    reseeded = random_geometry(InputConfig((512, 512), seed=4), sizes, ids, epochs)
    assert (geometry.scale != reseeded.scale).all()


def test_streams_of_a_sample_differ():
    first = sample_generator(1, 2, 3, 0).random(64)
    second = sample_generator(1, 2, 3, 1).random(64)
    assert not np.isin(first, second).any()


def test_augmentation_has_the_expected_distribution():
    config = InputConfig((512, 512), interpolation="random", seed=11)
    count = 4000
    sizes = np.tile([[512, 512]], (count, 1))
    geometry = random_geometry(config, sizes, np.arange(count), np.zeros(count, int))
    assert geometry.flip.mean() == pytest.approx(0.5, abs=0.04)
    assert (geometry.interpolation == 1).mean() == pytest.approx(0.5, abs=0.04)
    deciles = np.quantile(geometry.scale, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(deciles, [0.29, 1.05, 1.81], atol=0.05)
