"""The reference, effdet 0.4.1, and random weights with realistic outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from effdet import EfficientDet as OracleDetector
from effdet.config import get_efficientdet_config
from torch import Tensor, nn

from model import EfficientDet, build_detector

Pair = tuple[OracleDetector, EfficientDet]


def make_oracle(name: str, **settings: Any) -> OracleDetector:
    config = get_efficientdet_config(name)
    config.update(settings)
    return OracleDetector(config, pretrained_backbone=False)


@torch.no_grad()
def randomize(detector: nn.Module, images: Tensor, class_spread: float) -> None:
    """Random weights whose outputs spread like a trained detector's.

    Fresh heads give every anchor the same score and hardly move its box, so that a mistake in
    either would not show.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for name, parameter in detector.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(noise(parameter) * (0.5 if "edge_weights" in name else 0.1))
    for norm in norms:
        norm.momentum = 1.0
    detector.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.momentum = momentum
        norm.running_mean += 0.1 * noise(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= 1 + 0.2 * noise(norm.running_var).clamp(-1, 1)
    detector.eval()
    class_logits, box_regressions = detector(images)
    for part, outputs, spread in (
        ("class_net", class_logits, class_spread),
        ("box_net", box_regressions, 0.4),
    ):
        predict = detector.get_submodule(f"{part}.predict")
        scale = spread / torch.cat([x.flatten() for x in outputs]).std()
        for name, parameter in predict.named_parameters():
            if name.endswith("weight") and "conv_dw" not in name:
                parameter.mul_(scale)


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """Builds effdet's detector and ours with the same random weights."""

    def make(
        name: str,
        image_size: tuple[int, int],
        images: Tensor | None = None,
        class_spread: float = 1.5,
        **settings: Any,
    ) -> Pair:
        torch.manual_seed(0)
        oracle = make_oracle(name, image_size=image_size, **settings)
        images = torch.randn(2, 3, *image_size) if images is None else images
        randomize(oracle, images, class_spread)
        detector = build_detector(name, image_size=image_size, **settings)
        detector.load_state_dict(oracle.state_dict(), strict=True)
        return oracle, detector.eval()

    return make
