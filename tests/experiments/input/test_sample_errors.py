"""Files that are damaged while a loader runs."""

import dataclasses
import itertools
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.input import EvalLoader, InputConfig, SampleError, TrainLoader
from experiments.input.failures import file_fault

CONFIG = InputConfig((64, 64), threads=1, prefetch=1)


@pytest.fixture
def split(jpeg_split, tmp_path):
    """A split whose files may be damaged."""
    shutil.copytree(jpeg_split.image_dir, tmp_path / "images")
    return dataclasses.replace(jpeg_split, image_dir=tmp_path / "images")


def remove(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def one_byte(path):
    os.truncate(path, 1)


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def other_image(path):
    Image.new("RGB", (33, 22)).save(path)


def other_size_other_format(path):
    Image.new("RGB", (33, 22)).save(path, format="PNG")


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [
    (remove, "the file is missing"),
    (truncate, "it cannot be decoded: .*truncated"),
    (empty, "the file is empty"),
    (one_byte, "its 1 bytes are not an image"),
    (garbage, "its 2000 bytes are not an image"),
    (other_image, "33 x 22 pixels, .* in the annotations"),
    (other_size_other_format, "33 x 22 pixels"),
    (make_folder, "cannot be read"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_training_names_the_file_and_the_epoch(split, damage, reason):
    loader = TrainLoader(split, CONFIG, global_batch_size=4)
    for _ in range(3):
        next(loader)
    victim = split.image_dir / split.file_names[6]
    damage(victim)
    with pytest.raises(SampleError, match=reason) as caught:
        list(itertools.islice(loader, 8))
    error = caught.value
    assert error.path == victim
    assert error.epoch in (0, 1, 2)
    assert f"in epoch {error.epoch}" in str(error)
    assert str(error).startswith(str(victim))
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_evaluation_names_the_file(split, damage, reason):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    list(loader)
    victim = split.image_dir / split.file_names[10]
    damage(victim)
    with pytest.raises(SampleError, match=rf"{reason}.*\(in evaluation\)") as caught:
        list(loader)
    assert caught.value.path == victim
    assert caught.value.epoch is None


def test_the_epoch_is_that_of_the_sample(split):
    """The epoch in the message is the one in which the order has the image in that batch."""
    victim = split.image_dir / split.file_names[6]
    damaged_after = 13  # batches of one image: an epoch
    with TrainLoader(split, CONFIG, global_batch_size=1) as loader:
        for _ in range(damaged_after):
            next(loader)
        remove(victim)
        with pytest.raises(SampleError) as caught:
            list(itertools.islice(loader, 13))
    assert caught.value.epoch == 1


def test_a_lost_folder_says_how_many_files_are_gone(split):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    it = iter(loader)
    next(it)
    shutil.rmtree(split.image_dir)
    with pytest.raises(SampleError, match=r"is missing.* [3-9] more of the files tried"):
        list(it)


def test_sound_files_without_a_jpeg_end_pass(split):
    """Bytes after the image, and other formats, are no damage."""
    trailing = split.image_dir / split.file_names[0]
    trailing.write_bytes(trailing.read_bytes() + b"a comment")
    with Image.open(split.image_dir / split.file_names[1]) as image:
        image.load()
    image.save(split.image_dir / split.file_names[1], format="PNG")
    with EvalLoader(split, CONFIG, batch_size=4) as loader:
        for _ in range(2):
            assert sum(len(batch["image"]) for batch in loader) == 13


def test_an_end_cut_off_is_found_where_the_decoder_is_silent(split, monkeypatch):
    """GPU decoders may show a grey area in place of what is missing."""
    loader = EvalLoader(split, CONFIG, batch_size=13)
    (_batch,) = loader
    prepared = loader._prepare(0)
    shapes = np.concatenate([split.sizes[:, ::-1], np.full((13, 1), 3)], axis=1)
    ends = np.tile(np.array([0xFF, 0xD9], np.uint8), (13, 1))
    loader._stream._check(prepared, shapes, ends)
    truncate(prepared.paths[5])
    ends[5] = 17
    with pytest.raises(SampleError, match="truncated") as caught:
        loader._stream._check(prepared, shapes, ends)
    assert caught.value.path == prepared.paths[5]


def test_a_failure_that_no_file_explains_is_passed_on(split, monkeypatch):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    it = iter(loader)
    next(it)

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loader._stream._pipeline, "outputs", fail)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        next(it)
    assert not isinstance(caught.value, SampleError)
    assert "Each of the images in work decodes" in caught.value.__notes__[0]


def test_what_pillow_can_read_and_dali_cannot_is_named(split):
    """Pillow reads GIF; DALI's decoders do not."""
    victim = split.image_dir / split.file_names[3]
    with Image.open(victim) as image:
        image.load()
    image.save(victim, format="GIF")
    assert file_fault(victim, *image.size) is None
    with (
        EvalLoader(split, CONFIG, batch_size=4) as loader,
        pytest.raises(SampleError, match="DALI cannot decode it") as caught,
    ):
        list(loader)
    assert caught.value.path == victim
