"""Validation and derived values of InputConfig."""

import dataclasses

import pytest

from experiments.input import InputConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_size", (0, 512), r"\(height, width\), both at least 1"),
        ("image_size", 512, "a tuple of 2 numbers"),
        ("mean", (0.5, 0.5), "a tuple of 3 numbers"),
        ("mean", (123.0, 116.0, 103.0), "three values from 0 to 1"),
        ("std", (0.0, 0.2, 0.2), "three values above 0"),
        ("fill_color", "grey", '"mean", or one or three integers from 0 to 255'),
        ("fill_color", (0, 0, 256), "from 0 to 255"),
        ("interpolation", "hamming", "one of bilinear, bicubic, lanczos, random"),
        ("scale", (0.0, 2.0), "0 < smallest <= largest"),
        ("scale", (2.0, 0.1), "0 < smallest <= largest"),
        ("reprob", 1.5, "a probability, from 0 to 1"),
        ("remode", "noise", "one of const, rand, pixel"),
        ("recount", 0, "at least 1"),
        ("device", "cuda", "one of cpu, gpu"),
        ("device_id", -1, "the number of a GPU"),
        ("threads", 0, "at least 1"),
        ("prefetch", 0, "at least 1"),
        ("seed", -1, r"between 0 and 2\*\*64 - 1"),
    ],
)
def test_invalid_values_are_rejected(field, value, allowed):
    settings = {"image_size": (512, 512), field: value}
    with pytest.raises(ValueError, match=rf"^{field} is .*: it must be .*{allowed}"):
        InputConfig(**settings)


def test_fill_color_may_be_the_mean_a_grey_value_or_a_colour():
    config = InputConfig((64, 64), mean=(0.485, 0.456, 0.406))
    assert config.fill_rgb == (124, 116, 104)
    assert dataclasses.replace(config, fill_color=7).fill_rgb == (7, 7, 7)
    assert dataclasses.replace(config, fill_color=(1, 2, 3)).fill_rgb == (1, 2, 3)
