"""Weights in channels_last memory, also under Horovod, which sends contiguous tensors only."""

import importlib.util
from pathlib import Path

import pytest
import torch

from experiments.training.detector import use_channels_last
from model import build_detector
from tests.experiments.launched import run_script

LAYOUT = torch.channels_last


@pytest.mark.parametrize(
    ("model", "left_out"), [("tiny", 1), ("efficientdet_d0", 1), ("efficientdet_es", 40)]
)
def test_all_weights_but_those_that_horovod_cannot_send(model: str, left_out: int) -> None:
    detector = build_detector(model, num_classes=3, pretrained_backbone=False)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    use_channels_last(detector, contiguous=True)
    weights = {name: p for name, p in detector.named_parameters() if p.dim() == 4}
    assert all(p.is_contiguous() for p in detector.parameters())
    others = [name for name, p in weights.items() if not p.is_contiguous(memory_format=LAYOUT)]
    assert len(others) == left_out < len(weights)
    assert "conv_stem" in others[0]
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_horovod_all_weights() -> None:
    detector = build_detector("tiny", num_classes=3, pretrained_backbone=False)
    use_channels_last(detector, contiguous=False)
    assert all(p.is_contiguous(memory_format=LAYOUT) for p in detector.parameters() if p.dim() == 4)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed; `make horovod` builds it",
)
def test_horovod_sends_them_with_the_same_losses() -> None:
    script = Path(__file__).with_name("channels_last_ranks.py")
    run_script(script, launcher="horovodrun", ranks=2)
