"""Target assignment and loss, compiled on a GPU by default, and eager where that is impossible."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from experiments.runtime.communication import SingleProcess
from experiments.runtime.compiler import why_not_compiled
from experiments.settings.hparams import HParams
from experiments.training.padding import without_padding
from experiments.training.run import _can_compile
from model import DetectionCriterion, DetectorConfig, build_detector

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def make_batch(boxes: int, padded: int) -> dict[str, Tensor]:
    """Two images; the second has no box."""
    generator = torch.Generator().manual_seed(boxes)
    corner = 60 * torch.rand(2, padded, 2, generator=generator)
    size = 4 + 60 * torch.rand(2, padded, 2, generator=generator)
    labels = torch.randint(1, 4, (2, padded), generator=generator)
    labels[0, boxes:] = labels[1] = -1
    all_boxes = torch.cat([corner, corner + size], -1)
    all_boxes[labels < 0] = -1.0
    count = (labels > 0).sum(1)
    return {"boxes": all_boxes, "labels": labels, "box_count": count}


def outcome(
    config: DetectorConfig,
    dtype: torch.dtype,
    device: torch.device = CPU,
    **compiled: Any,
) -> tuple[Any, list[Tensor]]:
    """Targets; losses and gradients of random outputs."""
    criterion = DetectionCriterion(config).to(device)
    batch = make_batch(5, 40)
    batch.update({name: batch[name].to(device) for name in ("boxes", "labels")})
    assign, losses = criterion.assign, criterion.losses
    if compiled:
        assign = torch.compile(assign, dynamic=False, **compiled)
        losses = torch.compile(losses, dynamic=False, **compiled)
    generator = torch.Generator().manual_seed(0)
    outputs = [
        [
            torch.randn(2, values * 9, *size, generator=generator)
            .to(device, dtype)
            .requires_grad_()
            for size in config.level_sizes
        ]
        for values in (config.num_classes, 4)
    ]
    targets = assign(*without_padding(batch))
    found = losses((outputs[0], outputs[1]), targets, criterion.normalizer(targets))
    leaves = [x for kind in outputs for x in kind]
    return targets, [torch.stack(found), *torch.autograd.grad(found[0], leaves)]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_whole_graphs(options: dict[str, float], dtype: torch.dtype) -> None:
    """With or without ranks: no collective is in them, whatever starts the ranks."""
    config = build_detector("tiny", 3, image_size=(64, 64), **options).config
    targets, values = outcome(config, dtype)
    torch._dynamo.reset()
    graph_targets, graph_values = outcome(config, dtype, fullgraph=True, backend="aot_eager")
    for one, other in zip(targets, graph_targets, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(values, graph_values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("boxes", "size"), [(0, 16), (16, 16), (17, 32), (64, 64), (65, 100)])
def test_padding_that_no_image_needs_is_left_out(boxes: int, size: int) -> None:
    batch = make_batch(boxes, 100)
    kept = without_padding(batch)
    assert [x.shape[1] for x in kept] == [size, size]
    criterion = DetectionCriterion(build_detector("tiny", 3, image_size=(64, 64)).config)
    all_targets = criterion.assign(batch["boxes"], batch["labels"])
    for one, other in zip(criterion.assign(*kept), all_targets, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("hparams", "device", "expected"),
    [
        (HParams(), CUDA, True),
        (HParams(compile_loss=False), CUDA, False),
        (HParams(), CPU, False),
        (HParams(compile=True), CPU, True),
    ],
)
def test_what_is_compiled(hparams: HParams, device: torch.device, expected: bool) -> None:
    with mock.patch("experiments.training.run.why_not_compiled", return_value=None) as tried:
        assert _can_compile(hparams, device, SingleProcess()) == expected
    assert tried.call_count == int(expected)


def test_without_a_compiler_training_is_eager(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "RuntimeError: Failed to find C compiler. Please specify via CC.\n\nTraceback: ..."

    def fail(_: Any) -> Any:
        raise RuntimeError(reason)

    monkeypatch.setattr(torch, "compile", fail)
    assert why_not_compiled(CPU) == reason.splitlines()[0].rstrip(".")
    assert not _can_compile(HParams(compile=True), CPU, SingleProcess())
    (line,) = capsys.readouterr().out.splitlines()
    assert "Failed to find C compiler" in line
    assert "compile_loss: false" in line


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """Compiled there, targets are the processor's, and losses and gradients nearly."""
    assert why_not_compiled(CUDA) is None
    config = build_detector("tiny", 3, image_size=(64, 64)).config
    targets, values = outcome(config, dtype)
    gpu_targets, gpu_values = outcome(config, dtype, CUDA, fullgraph=True)
    for one, other in zip(targets, gpu_targets, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-5, atol=1e-6)
    tolerance = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for one, other in zip(values, gpu_values, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=tolerance, atol=1e-6)
