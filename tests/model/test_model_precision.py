"""Memory formats, autocast and compilation of the detector and its criterion."""

import pytest
import torch
from torch import Tensor

from model import DetectionCriterion, EfficientDet, build_detector


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 128, 128, generator=generator)
    boxes = torch.tensor([[[5.0, 9.0, 80.0, 120.0], [-1.0] * 4]] * 2)
    return images, boxes, torch.tensor([[3, -1], [1, -1]])


class Step(torch.nn.Module):
    """The loss of a batch, as in a training step."""

    def __init__(self, detector: EfficientDet) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = DetectionCriterion(detector.config)

    def forward(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.detector(images), boxes, labels)[0]
        return loss


def make_step() -> Step:
    torch.manual_seed(0)
    return Step(build_detector("tiny", num_classes=5)).train()


def gradient(step: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.float().flatten() for p in step.parameters() if p.grad is not None])


def test_compiles_without_graph_breaks() -> None:
    eager, compiled = make_step(), make_step()
    batch = make_batch()
    expected = eager(*batch)
    expected.backward()
    actual = torch.compile(compiled, fullgraph=True, backend="aot_eager")(*batch)
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    reference = gradient(eager)
    error = (gradient(compiled) - reference).norm() / reference.norm()
    assert error < 1e-4


def test_channels_last() -> None:
    step, last = make_step(), make_step().to(memory_format=torch.channels_last)
    images, boxes, labels = make_batch()
    expected = step(images, boxes, labels)
    expected.backward()
    actual = last(images.to(memory_format=torch.channels_last), boxes, labels)
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
    assert (gradient(last) - gradient(step)).norm() / gradient(step).norm() < 1e-3


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Rounding is 2**-9 and 2**-12; it is amplified about tenfold over some 60 layers with batch
    # norms, of which the coarsest see only 2 x 2 positions in 2 images.
    [(torch.bfloat16, 0.05), (torch.float16, 0.01)],
)
def test_autocast(dtype: torch.dtype, tolerance: float) -> None:
    step, cast = make_step(), make_step()
    batch = make_batch()
    expected = step(*batch)
    with torch.autocast("cpu", dtype=dtype):
        actual = cast(*batch)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    (actual * 256).backward()
    assert gradient(cast).isfinite().all()
    expected.backward()
    angle = torch.nn.functional.cosine_similarity(gradient(cast), gradient(step), dim=0)
    assert angle > 0.9
