"""The criterion against effdet 0.4.1: losses and gradients, and extreme numbers."""

from typing import Any

import pytest
import torch
from effdet.config import get_efficientdet_config
from effdet.loss import DetectionLoss as OracleLoss
from torch import Tensor

from model import DetectionCriterion, Targets, detector_config
from model.detection.losses import FocalSum, focal_loss

SIZE = (128, 256)
BOXES = torch.tensor([[[5.0, 9.0, 80.0, 120.0], [30.0, 30.0, 60.0, 50.0]], [[-1.0] * 4] * 2])
LABELS = torch.tensor([[1, 90], [-1, -1]])
FORMS = [{}, {"label_smoothing": 0.1}, {"legacy_focal": True}, {"gamma": 2.0}, {"gamma": 1.7}]


def predictions(memory_format: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = detector_config("efficientdet_d0", image_size=SIZE).level_sizes
    outputs = [torch.randn(2, 810, h, w) * 3 - 3 for h, w in sizes]
    outputs += [torch.randn(2, 36, h, w) * 0.3 for h, w in sizes]
    return [x.to(memory_format=memory_format).requires_grad_() for x in outputs]


def targets(num_ignored: int = 0) -> Targets:
    criterion = DetectionCriterion(detector_config("efficientdet_d0", image_size=SIZE))
    assigned = criterion.assign(BOXES, LABELS)
    assigned.class_targets[1, :num_ignored] = -2
    return assigned


def oracle(outputs: list[Tensor], assigned: Targets, form: dict[str, Any]) -> Tensor:
    config = get_efficientdet_config("efficientdet_d0")
    config.update({"image_size": SIZE, **form})
    classes, codes, start = [], [], 0
    for x in outputs[:5]:
        height, width = x.shape[2:]
        end = start + height * width * 9
        classes.append(assigned.class_targets[:, start:end].reshape(2, height, width, 9))
        codes.append(assigned.box_targets[:, start:end].reshape(2, height, width, 36))
        start = end
    losses = OracleLoss(config)(outputs[:5], outputs[5:], classes, codes, assigned.num_positives)
    return torch.stack(losses)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_ignored", [0, 100])
def test_losses_and_gradients(
    form: dict[str, Any], memory_format: torch.memory_format, num_ignored: int
) -> None:
    assigned = targets(num_ignored)
    theirs, ours = predictions(), predictions(memory_format)
    expected = oracle(theirs, assigned, form)
    criterion = DetectionCriterion(detector_config("efficientdet_d0", image_size=SIZE, **form))
    normalizer = criterion.normalizer(assigned)
    actual = torch.stack(criterion.losses((ours[:5], ours[5:]), assigned, normalizer))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    expected[0].backward()
    actual[0].backward()
    for x, y in zip(theirs, ours, strict=True):
        assert x.grad is not None
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-5 * float(x.grad.abs().max()))


def test_normalizer_divides_both_parts() -> None:
    criterion = DetectionCriterion(detector_config("efficientdet_d0", image_size=SIZE))
    outputs, assigned = predictions(), targets()
    normalizer = assigned.num_positives.sum() + 1
    once = criterion.losses((outputs[:5], outputs[5:]), assigned, normalizer)
    half = criterion.losses((outputs[:5], outputs[5:]), assigned, normalizer * 2)
    for x, y in zip(once, half, strict=True):
        torch.testing.assert_close(y * 2, x)


def test_ranks_together_divide_by_the_positives_of_the_global_batch() -> None:
    criterion = DetectionCriterion(detector_config("efficientdet_d0", image_size=SIZE))
    assigned = targets()
    positives = assigned.num_positives.sum()
    assert positives > 0
    assert criterion.normalizer(assigned) == positives + 1
    assert criterion.normalizer(assigned, 4, lambda own: own + 90) == (positives + 91) / 4


def test_one_call_is_the_same_as_its_steps() -> None:
    criterion = DetectionCriterion(detector_config("efficientdet_d0", image_size=SIZE))
    assert not criterion.state_dict()
    x = predictions()
    outputs, assigned = (x[:5], x[5:]), targets()
    expected = criterion.losses(outputs, assigned, criterion.normalizer(assigned))
    assert criterion(outputs, BOXES, LABELS) == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_the_derivative(smoothing: float) -> None:
    z = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    ce = torch.nn.functional.softplus(z) - smoothing / 2 * z
    expected = z.sigmoid() ** 1.5 * ce
    (gradient,) = torch.autograd.grad(expected.sum(), z)
    actual, actual_gradient = focal_loss(z.detach().float(), 1.5, smoothing)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(actual_gradient.double(), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    extremes = torch.tensor([-6e4, -200.0, -90.0, 0.0, 90.0, 200.0, 6e4])
    logits = extremes.view(1, 7, 1, 1).to(dtype).requires_grad_()
    for label in (-1, 0, 6):
        logits.grad = None
        total = FocalSum.apply(logits, torch.tensor(label).view(1, 1, 1, 1), 0.25, 1.5, 0.0)
        total.backward()
        assert total.isfinite()
        assert total.dtype == torch.float32
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
    # The loss of a negative with a very high logit is that logit.
    torch.testing.assert_close(focal_loss(extremes, 1.5, 0.0)[0][4:], extremes[4:])


def test_half_precision_keeps_small_gradients() -> None:
    logits = torch.full((1, 90, 2, 2), -7.0)
    gradients = []
    for dtype in (torch.float32, torch.float16):
        x = logits.clone().to(dtype).requires_grad_()
        # As with a loss scaler: without the scale, 1e-5 would have three bits in float16.
        (FocalSum.apply(x, torch.full((1, 2, 2, 1), -1), 0.25, 1.5, 0.0) * 2**10).backward()
        assert x.grad is not None
        gradients.append(x.grad.float())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-3, atol=0)
