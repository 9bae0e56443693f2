"""Names, shapes, outputs and gradients against effdet 0.4.1."""

from collections.abc import Callable

import pytest
import torch
from effdet import EfficientDet as OracleDetector
from effdet.bench import DetBenchTrain
from effdet.config import get_efficientdet_config
from effdet.config.model_config import efficientdet_model_param_dict

from model import DetectionCriterion, build_detector, detector_config, list_detectors

ORACLE_NAMES = sorted(efficientdet_model_param_dict)
COMPARED = ("efficientdet_d0", "efficientdet_d1", "tf_efficientdet_d0", "tf_efficientdet_lite0")


def test_every_configuration_of_the_oracle_exists() -> None:
    assert set(list_detectors()) == {*ORACLE_NAMES, "tiny"}


@pytest.mark.parametrize("name", ORACLE_NAMES)
def test_state_dict_is_the_oracles(name: str) -> None:
    with torch.device("meta"):
        oracle = OracleDetector(get_efficientdet_config(name), pretrained_backbone=False)
        detector = build_detector(name)
    expected = {key: (x.shape, x.dtype) for key, x in oracle.state_dict().items()}
    assert {key: (x.shape, x.dtype) for key, x in detector.state_dict().items()} == expected
    trained = [key for key, parameter in oracle.named_parameters() if parameter.requires_grad]
    assert [key for key, _ in detector.named_parameters()] == trained


@pytest.mark.parametrize("name", ORACLE_NAMES)
def test_settings_are_the_oracles(name: str) -> None:
    oracle = get_efficientdet_config(name)
    config = detector_config(name)
    for key in (
        *("backbone_name", "image_size", "num_classes", "url", "min_level", "max_level"),
        *("num_scales", "anchor_scale", "fpn_channels", "fpn_cell_repeats", "box_class_repeats"),
        *("alpha", "gamma", "delta", "box_loss_weight", "label_smoothing", "legacy_focal"),
        *("soft_nms", "max_detection_points", "max_det_per_image", "redundant_bias"),
        *("pad_type", "separable_conv", "downsample_type", "upsample_type", "head_act_type"),
    ):
        expected = oracle[key]
        actual = getattr(config, key)
        assert actual == (tuple(expected) if key == "image_size" else expected), key
    assert dict(config.backbone_args) == dict(oracle.backbone_args)
    assert config.act_type == oracle.act_type.replace("swish", "silu").replace(
        "hard_silu", "hard_swish"
    )
    assert config.fpn_name == (oracle.fpn_name or "bifpn_fa")
    assert (config.norm_eps, config.norm_momentum) == (0.001, 0.01)
    if "mean" in oracle:
        assert (config.mean, config.std) == (tuple(oracle.mean), tuple(oracle.std))


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("image_size", [(256, 256), (128, 256)])
def test_outputs(make_pair: Callable, name: str, image_size: tuple[int, int]) -> None:
    oracle, detector = make_pair(name, image_size)
    images = torch.randn(2, 3, *image_size)
    with torch.no_grad():
        expected, actual = oracle(images), detector(images)
    assert 1 < torch.cat([x.flatten() for x in expected[0]]).std() < 3
    for expected_levels, actual_levels in zip(expected, actual, strict=True):
        for x, y in zip(expected_levels, actual_levels, strict=True):
            torch.testing.assert_close(y, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # Published at a size that the stride of its coarsest level does not divide.
        ("tf_efficientdet_lite0", {"image_size": (320, 320)}),
        ("efficientdet_d0", {"fpn_name": "bifpn_attn"}),
        ("cspresdext50pan", {}),
        ("efficientdet_q1", {}),
        ("resdet50", {}),
        ("efficientdet_d0", {"fpn_name": "pan_sum"}),
        ("efficientdet_d0", {"fpn_name": "qufpn_sum"}),
    ],
)
def test_outputs_of_other_pyramids(make_pair: Callable, name: str, settings: dict) -> None:
    settings = {"image_size": (128, 256), **settings}
    oracle, detector = make_pair(name, **settings)
    images = torch.randn(1, 3, *settings["image_size"])
    with torch.no_grad():
        expected, actual = oracle(images), detector(images)
    for x, y in zip([*expected[0], *expected[1]], [*actual[0], *actual[1]], strict=True):
        torch.testing.assert_close(y, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "num_boxes"),
    [
        ("efficientdet_d0", {}, 5),
        ("efficientdet_d0", {"label_smoothing": 0.1}, 5),
        ("efficientdet_d0", {"legacy_focal": True}, 5),
        ("efficientdet_d0", {}, 0),
        ("efficientdet_d1", {}, 5),
        ("tf_efficientdet_d0", {}, 5),
        ("tf_efficientdet_lite0", {"legacy_focal": True}, 5),
    ],
)
def test_gradients(make_pair: Callable, name: str, settings: dict, num_boxes: int) -> None:
    image_size = (128, 128)
    oracle, detector = make_pair(name, image_size, **settings)
    bench = DetBenchTrain(oracle).train()
    # float64 up to the loss: rounding of 500 layers in float32 would hide differences.
    bench.model.double()
    detector.double().train()
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    corner = torch.rand(2, 8, 2) * 100
    boxes = torch.cat([corner, corner + 5 + torch.rand(2, 8, 2) * 80], dim=-1)
    labels = torch.randint(1, 91, (2, 8))
    labels[:, num_boxes:] = -1
    labels[1, 2:] = -1

    torch.manual_seed(1)  # for stochastic depth
    expected = bench(images, {"bbox": boxes, "cls": labels})
    expected["loss"].backward()
    torch.manual_seed(1)
    criterion = DetectionCriterion(detector.config)
    loss, class_loss, box_loss = criterion(detector(images), boxes, labels)
    loss.backward()

    for actual, key in ((loss, "loss"), (class_loss, "class_loss"), (box_loss, "box_loss")):
        torch.testing.assert_close(actual, expected[key], rtol=1e-5, atol=1e-7)
    gradients = {key: parameter.grad for key, parameter in oracle.named_parameters()}
    largest = max(x.abs().max() for x in gradients.values() if x is not None)
    for key, parameter in detector.named_parameters():
        if gradients[key] is None:
            assert parameter.grad is None, key
            continue
        # The gradient of a bias before a batch norm is only rounding.
        scale = gradients[key].abs().max().clamp(min=1e-7 * largest)
        error = (parameter.grad - gradients[key]).abs().max() / scale
        assert error <= 1e-4, (key, float(error))
