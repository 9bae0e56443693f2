"""What a configuration accepts, and what its errors say."""

import dataclasses
from pathlib import Path

import pytest
import torch

from model import build_detector, detector_config, list_detectors


def test_every_name_has_a_valid_configuration() -> None:
    for name in list_detectors():
        config = detector_config(name)
        assert config.name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.alpha = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("efficientdet_d00", {}, "did you mean efficientdet_d0"),
        ("yolo", {}, "known names: cspdarkdet53"),
        ("efficientdet_d0", {"label_smothing": 0.1}, "did you mean label_smoothing"),
        ("efficientdet_d0", {"image_size": (500, 512)}, "height 384 or 512, width 512$"),
        ("efficientdet_d0", {"image_size": (100, 700)}, "height 128, width 640 or 768$"),
        ("tf_efficientdet_d7x", {"image_size": (640, 512)}, "height 512 or 768, width 512$"),
        ("tf_efficientdet_lite0", {"image_size": (320, 384)}, "height 256 or 384, width 384$"),
        ("efficientdet_d0", {"image_size": (512.0, 512)}, "whole pixels"),
        ("efficientdet_d0", {"num_classes": 0}, "num_classes is 0"),
        ("efficientdet_d0", {"fpn_name": "fpn"}, "fpn_name is 'fpn'"),
        ("efficientdet_d0", {"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ("efficientdet_d0", {"label_smoothing": 0.1, "legacy_focal": True}, "only one of the two"),
        ("efficientdet_d0", {"gamma": 0.5}, "gamma is 0.5"),
        ("efficientdet_d0", {"delta": 0.0}, "delta is 0.0"),
    ],
)
def test_errors_say_what_to_do(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector_config(name, **settings)


def test_tiny_accepts_multiples_of_its_own_stride() -> None:
    detector = build_detector("tiny", num_classes=4, image_size=(64, 192)).eval()
    logits, codes = detector(torch.zeros(1, 3, 64, 192))
    sizes = detector.config.level_sizes
    assert [tuple(x.shape) for x in logits] == [(1, 36, h, w) for h, w in sizes]
    assert [tuple(x.shape) for x in codes] == [(1, 36, h, w) for h, w in sizes]


def test_backbone_weights_from_a_file(tmp_path: Path) -> None:
    source = build_detector("tiny")
    with torch.no_grad():
        source.backbone.get_parameter("conv_stem.weight").fill_(0.5)
    file = tmp_path / "backbone.pth"
    classifier = {"classifier.weight": torch.zeros(1000, 8)}
    torch.save({**source.backbone.state_dict(), **classifier}, file)
    detector = build_detector("tiny", backbone_weights=file)
    assert torch.all(detector.backbone.get_parameter("conv_stem.weight") == 0.5)

    with pytest.raises(RuntimeError, match="does not contain the weights of efficientnet_b0"):
        build_detector("efficientdet_d0", backbone_weights=file)
    missing = tmp_path / "none.pth"
    with pytest.raises(
        FileNotFoundError,
        match=r"none.pth does not exist. Download https://hugging.*backbone_weights",
    ):
        build_detector("tiny", backbone_weights=missing)


def test_download_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        if kwargs["pretrained"]:
            raise OSError("no route to host")

    monkeypatch.setattr("model.network.backbone.timm.create_model", fail)
    with pytest.raises(
        RuntimeError, match=r"no route to host.*Download https://huggingface.*backbone_weights"
    ):
        build_detector("efficientdet_d0", pretrained_backbone=True)
