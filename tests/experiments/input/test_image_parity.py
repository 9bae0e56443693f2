"""Pixels and boxes of real photographs compared with effdet's transforms."""

from collections.abc import Iterator
from pathlib import Path

import effdet.data.transforms as peer
import numpy as np
import pytest
from PIL import Image

from cocodata import Split, load_split, splits
from experiments.input import EvalLoader, InputConfig, TrainLoader
from experiments.input.augmentation import Geometry, random_geometry, sample_generator


class Draws:
    """Stands in for the module `random`, with given draws from [0, 1)."""

    def __init__(self, draws):
        self.draws = draws.tolist()

    def random(self):
        return self.draws.pop(0)

    def uniform(self, low, high):
        return low + (high - low) * self.random()

    def choice(self, options):
        return options[int(self.random() * len(options))]


def pixels(config: InputConfig, image) -> np.ndarray:
    """Undo the normalisation of an image; return (3, H, W) from 0 to 255."""
    mean, std = (np.array(value)[:, None, None] for value in (config.mean, config.std))
    return 255 * (image.numpy().astype(np.float64) * std + mean)


def compare(
    split: Split, config: InputConfig, batch, transforms
) -> Iterator[tuple[int, np.ndarray]]:
    """Compare boxes, labels and scales of a batch; yield its rows with effdet's pixels."""
    index_of = {image_id: i for i, image_id in enumerate(split.image_ids.tolist())}
    transform = transforms(config.image_size, config.interpolation, use_prefetcher=True)
    for row, image_id in enumerate(batch["image_id"].tolist()):
        index = index_of[image_id]
        boxes, labels = split.targets(index)
        peer.random = Draws(sample_generator(config.seed, 0, image_id).random(5))
        with Image.open(split.image_dir / split.file_names[index]) as image:
            expected, target = transform(
                image.convert("RGB"), {"bbox": boxes.copy(), "cls": labels.copy()}
            )
        count = len(target["bbox"])
        np.testing.assert_array_equal(batch["boxes"][row, :count], target["bbox"])
        np.testing.assert_array_equal(batch["labels"][row, :count], target["cls"])
        assert (batch["labels"][row, count:] == -1).all()
        assert batch["source_scale"][row] == np.float32(target["img_scale"])
        yield row, expected


@pytest.fixture(autouse=True)
def _restore_peer_random(monkeypatch):
    monkeypatch.setattr(peer, "random", peer.random)


@pytest.mark.parametrize("image_size", [(512, 512), (384, 640)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_images_match_effdets(coco_tiny: Path, image_size, interpolation):
    split = load_split(coco_tiny, splits(coco_tiny)[1])
    config = InputConfig(image_size, interpolation=interpolation, threads=2)
    differences = []
    with EvalLoader(split, config, batch_size=32) as loader:
        for batch in loader:
            for row, expected in compare(split, config, batch, peer.transforms_coco_eval):
                differences.append(np.abs(pixels(config, batch["image"][row]) - expected))
    assert len(differences) == len(split)
    assert np.mean(differences) < 0.15
    assert max(difference.mean() for difference in differences) < 0.2
    assert np.max(differences) < (10.5 if interpolation == "bilinear" else 24)


def test_training_images_match_effdets(coco_tiny: Path):
    split = load_split(coco_tiny, splits(coco_tiny)[0])
    config = InputConfig((512, 512), interpolation="random", threads=2, seed=5)
    inside = {0: [], 1: []}
    means, padding = [], []
    with TrainLoader(split, config, global_batch_size=len(split)) as loader:
        batch = next(loader)
    geometry: Geometry = random_geometry(
        config,
        batch["source_size"].numpy()[:, ::-1],
        batch["image_id"].numpy(),
        np.zeros(len(split), np.int64),
    )
    for row, expected in compare(split, config, batch, peer.transforms_coco_train):
        difference = np.abs(pixels(config, batch["image"][row]) - expected)
        height, width = geometry.visible_size[row]
        means.append(difference[:, :height, :width].mean())
        padding.append(
            max(difference[:, height:].max(initial=0), difference[:, :, width:].max(initial=0))
        )
        # effdet resizes before it crops, so pixels within three of the window's edge differ.
        core = difference[:, 3 : height - 3, 3 : width - 3]
        inside[int(geometry.interpolation[row])].append(core.max(initial=0))
    assert np.mean(means) < 0.2
    assert max(padding) < 1e-3
    assert min(map(len, inside.values())) > 20
    assert max(inside[0]) <= 1.001
    assert max(inside[1]) <= 20.001
