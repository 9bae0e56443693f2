"""The loaders on generated JPEG files: the contents of batches, and what they do not depend on."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.input import EvalLoader, FakeLoader, InputConfig, TrainLoader
from experiments.input.augmentation import letterbox_geometry
from model import DetectionCriterion, detector_config

CONFIG = InputConfig(
    (64, 96), interpolation="random", threads=2, seed=21, reprob=0.5, recount=2, remode="pixel"
)
EVALUATION = InputConfig((64, 96), threads=2)


def load(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def concatenate(batches):
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def assert_equal_batches(first, second):
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.fixture(scope="module")
def global_batches(jpeg_split):
    """The first four global batches, which extend into the third epoch of 13 images."""
    return load(TrainLoader(jpeg_split, CONFIG, global_batch_size=8), 4)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_share_the_same_global_batches(jpeg_split, global_batches, num_ranks):
    shares = [
        load(
            TrainLoader(jpeg_split, CONFIG, global_batch_size=8, rank=rank, num_ranks=num_ranks), 4
        )
        for rank in range(num_ranks)
    ]
    for k, batch in enumerate(global_batches):
        assert_equal_batches(concatenate([share[k] for share in shares]), batch)


def test_starting_at_a_batch_equals_skipping_to_it(jpeg_split, global_batches):
    with TrainLoader(jpeg_split, CONFIG, global_batch_size=8, start_batch=2) as loader:
        for k in (2, 3):
            assert_equal_batches(next(loader), global_batches[k])


def test_epochs_have_every_image_and_differ(jpeg_split, global_batches):
    samples = concatenate(global_batches)
    ids = samples["image_id"].tolist()
    assert sorted(ids[:13]) == sorted(ids[13:26]) == jpeg_split.image_ids.tolist()
    one, other = ids.index(ids[0]), ids.index(ids[0], 13)
    assert samples["source_scale"][one] != samples["source_scale"][other]
    assert len(TrainLoader(jpeg_split, CONFIG, global_batch_size=8)) == 2


def test_contents_of_a_batch(jpeg_split, global_batches):
    batch = global_batches[0]
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in batch.items()} == {
        "image": (torch.float32, (8, 3, 64, 96)),
        "boxes": (torch.float32, (8, 100, 4)),
        "labels": (torch.int64, (8, 100)),
        "box_count": (torch.int64, (8,)),
        "image_id": (torch.int64, (8,)),
        "source_scale": (torch.float32, (8,)),
        "source_size": (torch.int64, (8, 2)),
    }
    index_of = {image_id: i for i, image_id in enumerate(jpeg_split.image_ids.tolist())}
    for row, image_id in enumerate(batch["image_id"].tolist()):
        width, height = jpeg_split.sizes[index_of[image_id]].tolist()
        assert batch["source_size"][row].tolist() == [height, width]
    assert torch.equal(batch["box_count"], (batch["labels"] > 0).sum(1))


def test_random_erasing_changes_only_images(jpeg_split, global_batches):
    plain = dataclasses.replace(CONFIG, reprob=0.0)
    (batch,) = load(TrainLoader(jpeg_split, plain, global_batch_size=8), 1)
    erased = (batch["image"] != global_batches[0]["image"]).flatten(1).any(1)
    assert 0 < erased.sum() < 8
    del batch["image"]
    for key, tensor in batch.items():
        assert torch.equal(tensor, global_batches[0][key])


def test_channels_last_changes_only_the_memory_format(jpeg_split, global_batches):
    config = dataclasses.replace(CONFIG, channels_last=True)
    (batch,) = load(TrainLoader(jpeg_split, config, global_batch_size=8), 1)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    plain = dataclasses.replace(CONFIG, reprob=0.0)
    both = [
        load(TrainLoader(jpeg_split, c, global_batch_size=8), 1)[0]
        for c in (plain, dataclasses.replace(plain, channels_last=True))
    ]
    assert_equal_batches(*both)
    assert_equal_batches(batch, global_batches[0])


def test_batches_own_their_memory(jpeg_split):
    loader = TrainLoader(jpeg_split, CONFIG, global_batch_size=4)
    held = [next(loader) for _ in range(6)]
    copies = [{key: tensor.clone() for key, tensor in batch.items()} for batch in held]
    for _ in range(6):
        next(loader)["image"].fill_(7.0)
    loader.close()
    for batch, copy in zip(held, copies, strict=True):
        assert_equal_batches(batch, copy)


@pytest.mark.parametrize(("num_ranks", "batch_size"), [(1, 4), (2, 3), (3, 5), (16, 2)])
def test_evaluation_has_each_image_once(jpeg_split, num_ranks, batch_size):
    seen = []
    for rank in range(num_ranks):
        with EvalLoader(
            jpeg_split, EVALUATION, batch_size=batch_size, rank=rank, num_ranks=num_ranks
        ) as loader:
            batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch["image"]) == batch_size for batch in batches[:-1])
        assert all(0 < len(batch["image"]) <= batch_size for batch in batches)
        seen += [image_id for batch in batches for image_id in batch["image_id"].tolist()]
    assert sorted(seen) == jpeg_split.image_ids.tolist()


def test_pixels_do_not_depend_on_neighbours_or_threads(jpeg_split):
    def images(batch_size, threads):
        config = dataclasses.replace(EVALUATION, threads=threads)
        with EvalLoader(jpeg_split, config, batch_size=batch_size) as loader:
            return torch.cat([batch["image"] for batch in loader])

    alone = images(1, 1)
    for batch_size, threads in ((13, 1), (13, 3), (4, 2)):
        assert torch.equal(images(batch_size, threads), alone)


def test_evaluation_passes_are_equal_even_after_an_abandoned_one(jpeg_split):
    with EvalLoader(jpeg_split, EVALUATION, batch_size=2) as loader:
        first = list(loader)
        next(iter(loader))
        for again in (list(loader), list(loader)):
            assert len(again) == len(first)
            for one, other in zip(first, again, strict=True):
                assert_equal_batches(one, other)


def test_evaluation_pads_with_the_mean_colour(jpeg_split):
    config = dataclasses.replace(EVALUATION, image_size=(64, 256))
    with EvalLoader(jpeg_split, config, batch_size=13) as loader:
        batch = next(iter(loader))
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    grey = (torch.tensor(config.fill_rgb) / 255 - mean) / std
    torch.testing.assert_close(batch["image"][:, :, :, -1], grey[None, :, None].expand(13, 3, 64))


def test_images_without_annotations_have_no_boxes(jpeg_split):
    with EvalLoader(jpeg_split, EVALUATION, batch_size=13) as loader:
        batch = next(iter(loader))
    has_boxes = torch.from_numpy(np.diff(jpeg_split.box_offsets) > 0)
    assert (has_boxes == 0).sum() == 1
    assert torch.equal((batch["labels"] > 0).any(1), has_boxes)


def test_the_labeler_runs_ahead_in_another_thread(jpeg_split, global_batches):
    threads = set()

    def label(boxes, labels):
        threads.add(threading.current_thread())
        return {
            "class_targets": labels * 10,
            "box_targets": boxes + 1,
            "num_positives": (labels > 0).sum(1).float(),
        }

    (batch,) = load(TrainLoader(jpeg_split, CONFIG, global_batch_size=8, labeler=label), 1)
    assert torch.equal(batch["class_targets"], batch["labels"] * 10)
    assert torch.equal(batch["box_targets"], batch["boxes"] + 1)
    assert torch.equal(batch["num_positives"], (batch["labels"] > 0).sum(1).float())
    assert threading.main_thread() not in threads
    with EvalLoader(jpeg_split, EVALUATION, batch_size=4, labeler=label) as loader:
        assert "class_targets" in next(iter(loader))


def test_the_loaders_targets_equal_the_models(jpeg_split):
    config = InputConfig((128, 128), threads=2)
    criterion = DetectionCriterion(detector_config("tiny"))

    def label(boxes, labels):
        return criterion.assign(boxes, labels)._asdict()

    with EvalLoader(jpeg_split, config, batch_size=13, labeler=label) as loader:
        (batch,) = loader
    expected = criterion.assign(batch["boxes"], batch["labels"])
    assert batch["num_positives"].sum() > 0
    for key, tensor in expected._asdict().items():
        assert torch.equal(batch[key], tensor), key


def test_an_error_in_the_labeler_is_raised(jpeg_split):
    def label(boxes, labels):
        raise ArithmeticError("no targets")

    loader = TrainLoader(jpeg_split, CONFIG, global_batch_size=8, labeler=label)
    with pytest.raises(ArithmeticError, match="no targets"):
        next(loader)
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_other_kinds_of_images_are_decoded_like_pillow(jpeg_folder, jpeg_split, tmp_path):
    """Grey and CMYK JPEGs become RGB; EXIF orientation is ignored."""
    names = jpeg_split.file_names[:4]
    split = dataclasses.replace(
        jpeg_split.select(np.arange(13) < 4), image_dir=tmp_path, file_names=names
    )
    for name, mode in zip(names, ("L", "CMYK", "RGB", "RGB"), strict=True):
        with Image.open(jpeg_split.image_dir / name) as image:
            exif = image.getexif()
            exif[0x0112] = 6  # stored rotated by 90 degrees
            image.convert(mode).save(tmp_path / name, quality=95, exif=exif)
    config = dataclasses.replace(EVALUATION, image_size=(96, 96))
    with EvalLoader(split, config, batch_size=4) as loader:
        batch = next(iter(loader))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    for row, name in enumerate(names):
        with Image.open(tmp_path / name) as image:
            shape = letterbox_geometry(config, np.array([image.size])).scaled_size[0, ::-1]
            expected = np.asarray(
                image.convert("RGB").resize(tuple(shape.tolist()), Image.Resampling.BILINEAR)
            )
        got = 255 * (batch["image"][row] * std + mean).permute(1, 2, 0).numpy()
        difference = np.abs(got[: expected.shape[0], : expected.shape[1]] - expected)
        assert difference.mean() < 0.5, name


def test_closed_loaders_leave_no_threads_and_raise(jpeg_split):
    def num_threads():
        return len(list(Path("/proc/self/task").iterdir()))

    before = num_threads()
    for _ in range(3):
        train = TrainLoader(jpeg_split, CONFIG, global_batch_size=8)
        evaluation = EvalLoader(jpeg_split, EVALUATION, batch_size=2)
        next(train)
        next(iter(evaluation))
        assert num_threads() > before
        train.close()
        evaluation.close()
        evaluation.close()
        assert num_threads() == before
    with pytest.raises(ValueError, match="closed"):
        next(train)
    with pytest.raises(ValueError, match="closed"):
        iter(evaluation)


def test_loaders_reject_invalid_arguments(jpeg_split):
    with pytest.raises(ValueError, match="6 is not divisible by 4 ranks"):
        TrainLoader(jpeg_split, CONFIG, global_batch_size=6, num_ranks=4)
    with pytest.raises(ValueError, match="interpolation is 'random'"):
        EvalLoader(jpeg_split, CONFIG, batch_size=4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        EvalLoader(jpeg_split, EVALUATION, batch_size=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_fake_batches_have_the_format_of_real_ones(jpeg_split, global_batches, channels_last):
    config = dataclasses.replace(CONFIG, channels_last=channels_last)
    fake = FakeLoader(config, batch_size=8, num_batches=3, num_classes=3)
    batches = list(fake)
    assert len(batches) == len(fake) == 3
    for key, tensor in global_batches[0].items():
        assert batches[0][key].shape == tensor.shape
        assert batches[0][key].dtype == tensor.dtype
    batch = batches[0]
    assert batch["image"].is_contiguous(memory_format=torch.channels_last) == channels_last
    boxes, labels = batch["boxes"], batch["labels"]
    real = labels > 0
    assert labels[real].max() <= 3
    assert (boxes[~real] == -1).all()
    assert (boxes[real][:, 2:] > boxes[real][:, :2]).all()
    assert (boxes[real] >= 0).all()
    assert (boxes[real] <= torch.tensor([64.0, 96.0, 64.0, 96.0]) + 1e-3).all()
    assert_equal_batches(
        batch, next(iter(FakeLoader(config, batch_size=8, num_batches=1, num_classes=3)))
    )
    endless = iter(FakeLoader(config, batch_size=1, num_batches=2, num_classes=3, endless=True))
    assert len([next(endless) for _ in range(5)]) == 5
