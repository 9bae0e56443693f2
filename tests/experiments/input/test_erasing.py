"""Random erasing compared with effdet's, given the same random draws."""

import effdet.data.random_erasing as peer
import numpy as np
import pytest
import torch

from experiments.input.erasing import (
    Erasure,
    draw_erasures,
    draw_patches,
    draw_rectangles,
    erasable_size,
    erase,
)
from experiments.input.input_config import InputConfig


class Draws:
    """Stands in for a generator and for the module `random`, with given draws from [0, 1)."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def random(self):
        return next(self.draws)

    def uniform(self, low, high):
        return low + (high - low) * self.random()

    def randint(self, low, high):
        return int(low) + int(self.random() * (int(high) - int(low) + 1))


@pytest.mark.parametrize("recount", [1, 3])
def test_rectangles_equal_effdets(recount, monkeypatch):
    config = InputConfig((128, 160), reprob=0.6, recount=recount, remode="const")
    generator = np.random.default_rng(2)
    erased = 0
    for _ in range(100):
        draws = generator.random(200).tolist()
        size = generator.integers(20, 800, 2)
        scale = np.array([min(128 / size[1], 160 / size[0]) * generator.uniform(0.1, 2)])
        height, width = erasable_size(size[None], scale, config.image_size)[0].tolist()
        rectangles = draw_rectangles(config, height, width, Draws(draws))
        erased += len(rectangles)
        ours = torch.ones(1, 3, 128, 160)
        erase(ours, draw_patches([Erasure(0, rectangles, 0)], "const"))

        monkeypatch.setattr(peer, "random", Draws(draws))
        theirs = torch.ones(1, 3, 128, 160)
        erasing = peer.RandomErasing(0.6, mode="const", max_count=recount, device="cpu")
        target = {
            "img_scale": torch.from_numpy(1 / scale).float(),
            "img_size": torch.from_numpy(size[None]).int(),
        }
        erasing(theirs, target)
        assert torch.equal(ours, theirs)
    assert erased > 40


def test_the_erasable_size_is_rounded_like_effdets():
    """effdet divides in float32, which sometimes gives one more row or column than float64."""
    sizes = np.array([[width, 480] for width in range(400, 700)])
    scale = 512 / sizes.max(axis=1)
    expected = torch.from_numpy(sizes).int() / torch.from_numpy(1 / scale).float()[:, None]
    got = erasable_size(sizes, scale, (512, 512))
    np.testing.assert_array_equal(got, expected.int().clamp(max=512).numpy()[:, ::-1])
    assert (got[:, 1] != (sizes[:, 0] * scale).astype(int)).any()


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_contents_of_an_erased_rectangle(mode):
    images = torch.full((2, 3, 64, 64), 5.0)
    rectangles = [(4, 8, 30, 40), (50, 0, 10, 20)]
    erase(images, draw_patches([Erasure(1, rectangles, 77)], mode))
    assert (images[0] == 5).all()
    outside = torch.ones(64, 64, dtype=torch.bool)
    for top, left, height, width in rectangles:
        outside[top : top + height, left : left + width] = False
        window = images[1, :, top : top + height, left : left + width].flatten(1)
        if mode == "const":
            assert (window == 0).all()
        elif mode == "rand":
            assert (window == window[:, :1]).all()
            assert window[:, 0].unique().numel() == 3
        else:
            assert window.mean().abs() < 0.15
            assert (window.std() - 1).abs() < 0.1
    assert (images[1][:, outside] == 5).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_noise_depends_only_on_its_seed(memory_format):
    def noise(row, seed):
        images = torch.zeros(3, 3, 32, 32).contiguous(memory_format=memory_format)
        erase(images, draw_patches([Erasure(row, [(0, 0, 32, 32)], seed)], "pixel"))
        return images[row]

    assert torch.equal(noise(0, 5), noise(2, 5))
    assert not torch.equal(noise(0, 5), noise(0, 6))


def test_erasures_depend_on_the_sample_but_not_on_its_batch():
    config = InputConfig((128, 128), reprob=0.5, recount=4, seed=9)
    ids, epochs = np.arange(40), np.repeat([0, 1], 20)
    size = np.tile([[128, 100]], (40, 1))
    together = draw_erasures(config, size, ids, epochs)
    assert 8 < len(together) < 32
    halves = [
        (erasure.row + start, erasure.rectangles, erasure.noise_seed)
        for start in (0, 20)
        for erasure in draw_erasures(config, size[:20], ids[start:][:20], epochs[start:][:20])
    ]
    assert halves == [(e.row, e.rectangles, e.noise_seed) for e in together]


def test_nothing_is_erased_with_probability_0():
    config = InputConfig((128, 128), reprob=0.0)
    sizes = np.tile([[128, 128]], (50, 1))
    assert draw_erasures(config, sizes, np.arange(50), np.zeros(50, int)) == []
