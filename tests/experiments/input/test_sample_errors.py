"""Image files that are damaged while a loader is running."""

import dataclasses
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.input import EvalLoader, InputConfig, SampleError, TrainLoader, failures, stream
from experiments.input.failures import file_problem

CONFIG = InputConfig((64, 64), threads=1, prefetch=1)


@pytest.fixture
def split(jpeg_split, tmp_path):
    """A copy of the split, whose files tests may damage."""
    shutil.copytree(jpeg_split.image_dir, tmp_path / "images")
    return dataclasses.replace(jpeg_split, image_dir=tmp_path / "images")


def remove(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def truncate_to_nothing(path):
    os.truncate(path, 0)


def truncate_to_one_byte(path):
    os.truncate(path, 1)


def fill_with_noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def replace_by_another_size(path):
    Image.new("RGB", (33, 22)).save(path)


def replace_by_another_format(path):
    Image.new("RGB", (33, 22)).save(path, format="PNG")


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [
    (remove, "the file is missing"),
    (truncate, "it cannot be decoded: .*truncated"),
    (truncate_to_nothing, "the file is empty"),
    (truncate_to_one_byte, "its 1 bytes are not an image"),
    (fill_with_noise, "its 2000 bytes are not an image"),
    (replace_by_another_size, "33 x 22 pixels, .* in the annotations"),
    (replace_by_another_format, "33 x 22 pixels"),
    (replace_by_a_folder, "cannot be read"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_an_error_in_training_names_the_file_and_the_epoch(split, damage, reason):
    loader = TrainLoader(split, CONFIG, global_batch_size=4)
    for _ in range(3):
        next(loader)
    file = split.image_dir / split.file_names[6]
    damage(file)
    with pytest.raises(SampleError, match=reason) as caught:
        list(itertools.islice(loader, 8))
    error = caught.value
    assert error.path == file
    assert error.epoch in (0, 1, 2)
    assert f"in epoch {error.epoch}" in str(error)
    assert str(error).startswith(str(file))
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_an_error_in_evaluation_names_the_file(split, damage, reason):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    list(loader)
    file = split.image_dir / split.file_names[10]
    damage(file)
    with pytest.raises(SampleError, match=rf"{reason}.*\(in evaluation\)") as caught:
        list(loader)
    assert caught.value.path == file
    assert caught.value.epoch is None


def test_the_epoch_in_an_error_is_the_samples(split):
    file = split.image_dir / split.file_names[6]
    damaged_after = 13  # batches of one image, which are one epoch
    with TrainLoader(split, CONFIG, global_batch_size=1) as loader:
        for _ in range(damaged_after):
            next(loader)
        remove(file)
        with pytest.raises(SampleError) as caught:
            list(itertools.islice(loader, 13))
    assert caught.value.epoch == 1


def test_an_error_counts_the_unusable_files(split):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    it = iter(loader)
    next(it)
    shutil.rmtree(split.image_dir)
    with pytest.raises(SampleError, match=r"is missing.* [3-9] more of the files that were tried"):
        list(it)


def test_valid_files_without_a_jpeg_end_marker_pass(split):
    """They may have bytes after the image, or another format."""
    trailing = split.image_dir / split.file_names[0]
    trailing.write_bytes(trailing.read_bytes() + b"a comment")
    with Image.open(split.image_dir / split.file_names[1]) as image:
        image.load()
    image.save(split.image_dir / split.file_names[1], format="PNG")
    with EvalLoader(split, CONFIG, batch_size=4) as loader:
        for _ in range(2):
            assert sum(len(batch["image"]) for batch in loader) == 13


def test_a_truncated_file_is_detected_even_if_the_decoder_does_not_report_it(split, monkeypatch):
    """GPU decoders may produce a grey area instead of the missing part."""
    loader = EvalLoader(split, CONFIG, batch_size=13)
    (_batch,) = loader
    plan = loader._plan_batch(0)
    shapes = np.concatenate([split.sizes[:, ::-1], np.full((13, 1), 3)], axis=1)
    ends = np.tile(np.array([0xFF, 0xD9], np.uint8), (13, 1))
    loader._stream._check(plan, shapes, ends)
    truncate(plan.paths[5])
    ends[5] = 17
    with pytest.raises(SampleError, match="truncated") as caught:
        loader._stream._check(plan, shapes, ends)
    assert caught.value.path == plan.paths[5]


@pytest.mark.parametrize("kind", [ValueError, TypeError, MemoryError, SystemError])
def test_errors_of_any_kind_name_the_file(split, monkeypatch, kind):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    it = iter(loader)
    next(it)
    file = split.image_dir / split.file_names[5]
    truncate(file)

    def fail(**_):
        raise kind("[/opt/dali/operator.cc:1] Assert failed")

    monkeypatch.setattr(loader._stream._pipeline, "outputs", fail)
    with pytest.raises(SampleError, match="truncated") as caught:
        next(it)
    assert caught.value.path == file
    assert isinstance(caught.value.__cause__, kind)


def test_an_error_without_a_bad_file_is_raised_unchanged(split, monkeypatch):
    loader = EvalLoader(split, CONFIG, batch_size=4)
    it = iter(loader)
    next(it)

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loader._stream._pipeline, "outputs", fail)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        next(it)
    assert not isinstance(caught.value, SampleError)
    assert "No image of the current batches is the cause" in caught.value.__notes__[0]


def test_a_gpu_that_decodes_nothing_is_not_the_files_fault(split, monkeypatch):
    """Such as one without free memory."""
    loader = EvalLoader(split, CONFIG, batch_size=4)
    it = iter(loader)
    next(it)

    def fail(**_):
        raise RuntimeError("CUDA allocation failed")

    monkeypatch.setattr(loader._stream._pipeline, "outputs", fail)
    monkeypatch.setattr(loader._stream, "_config", dataclasses.replace(CONFIG, device="gpu"))
    monkeypatch.setattr(stream, "dali_problem", lambda path, config: "DALI cannot decode it")
    monkeypatch.setattr(stream, "release_memory", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with pytest.raises(RuntimeError, match="CUDA allocation failed") as caught:
        next(it)
    assert not isinstance(caught.value, SampleError)


def test_a_file_is_tried_on_the_gpu_that_failed(monkeypatch):
    given = {}

    def pipeline_def(**options):
        given.update(options)
        return lambda decode: lambda: pytest.fail("a decoder that fails")

    monkeypatch.setattr(failures, "pipeline_def", pipeline_def)
    for device, device_id in (("cpu", None), ("gpu", 1)):
        config = dataclasses.replace(CONFIG, device=device, device_id=1)
        with pytest.raises(pytest.fail.Exception):
            failures.dali_problem(Path("image.jpg"), config)
        assert given["device_id"] == device_id


def test_a_file_that_only_dali_cannot_read_is_reported(split):
    """Pillow reads GIF, DALI does not."""
    file = split.image_dir / split.file_names[3]
    with Image.open(file) as image:
        image.load()
    image.save(file, format="GIF")
    assert file_problem(file, *image.size) is None
    with (
        EvalLoader(split, CONFIG, batch_size=4) as loader,
        pytest.raises(SampleError, match="DALI cannot decode it") as caught,
    ):
        list(loader)
    assert caught.value.path == file
