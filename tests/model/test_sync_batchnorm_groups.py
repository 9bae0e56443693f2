"""Batch norms that do not depend on each other share collectives, on processors and on GPUs."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model import build_detector, convert_sync_batchnorm
from model.network import sync_batchnorm
from model.network.batchnorm_kernels import CudaKernels, ProcessorKernels
from model.network.sync_batchnorm import normalize_together

# Forward and backward: of the backbone's norms two each, of the pyramid's laterals two in all, of
# its nodes two each, and of the heads two for each depth.
COLLECTIVES = {"tiny": 98, "efficientdet_d0": 152, "efficientdet_d1": 208}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_of_a_step(name: str) -> None:
    shapes = []

    def count(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return x.clone()

    detector = convert_sync_batchnorm(build_detector(name, 3, image_size=(128, 128)), count)
    logits, regressions = detector(torch.randn(2, 3, 128, 128))
    sum(output.sum() for output in (*logits, *regressions)).backward()
    assert len(shapes) == COLLECTIVES[name]
    shapes.clear()
    detector.eval()(torch.randn(2, 3, 128, 128))
    assert shapes == []


# PyTorch's operations for CUDA, as they are documented by torch.nn.SyncBatchNorm's use of them.


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    return mean.float(), (variance + eps).rsqrt().float()


def _per_channel(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().view(1, -1, 1, 1) for tensor in tensors]


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv: Tensor, _: float) -> Tensor:
    w, b, m, i = _per_channel(weight, bias, mean, inv)
    return ((x.double() - m) * i * w + b).to(x.dtype)


def _reduce(
    grad: Tensor, x: Tensor, mean: Tensor, inv: Tensor, _: Tensor, *wanted: bool
) -> tuple[Tensor, ...]:
    assert all(wanted)
    centred = x.double() - _per_channel(mean)[0]
    sums = grad.double().sum((0, 2, 3)), (grad.double() * centred).sum((0, 2, 3))
    return sums[0].float(), sums[1].float(), (sums[1] * inv.double()).float(), sums[0].float()


def _backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inv: Tensor,
    weight: Tensor,
    sum_grad: Tensor,
    sum_centred: Tensor,
    count: Tensor,
) -> Tensor:
    assert count.dtype == torch.int32
    m, i, w, one, other = _per_channel(mean, inv, weight, sum_grad, sum_centred)
    total = count.double().sum()
    normalized = (x.double() - m) * i.square() * other / total
    return ((grad.double() - one / total - normalized) * i * w).to(x.dtype)


OPERATIONS = {
    "batch_norm_stats": _stats,
    "batch_norm_elemt": _elemt,
    "batch_norm_backward_reduce": _reduce,
    "batch_norm_backward_elemt": _backward_elemt,
}


@pytest.fixture(params=[ProcessorKernels, CudaKernels])
def _kernels(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, operation in OPERATIONS.items():
        monkeypatch.setattr(torch, name, operation)
    monkeypatch.setattr(sync_batchnorm, "kernels_for", lambda x: request.param)


def _ranks(count: int, run: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """Run a function of rank and sum over ranks in threads; one that fails stops the others."""
    barrier = threading.Barrier(count, timeout=60)
    given: list[Any] = [None] * count

    def rank(number: int) -> Any:
        def all_reduce_sum(x: Tensor) -> Tensor:
            assert x.dtype == torch.float64
            given[number] = x
            barrier.wait()
            total: Tensor = sum(given)  # type: ignore[assignment]
            barrier.wait()
            return total

        return run(number, all_reduce_sum)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(rank, range(count)))


def _norms(channels: list[int]) -> nn.ModuleList:
    norms = nn.ModuleList(nn.BatchNorm2d(c, eps=1e-3, momentum=0.3) for c in channels)
    for number, parameter in enumerate(norms.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return norms


@pytest.mark.usefixtures("_kernels")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    images=st.lists(st.integers(1, 4), min_size=1, max_size=3),  # of each rank
    norms=st.lists(st.tuples(st.integers(1, 5), st.integers(2, 9)), min_size=1, max_size=4),
    mean=st.sampled_from([0.0, 1.0, -30.0]),
    std=st.sampled_from([1e-2, 1.0, 50.0]),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_against_float64(
    images: list[int],
    norms: list[tuple[int, int]],
    mean: float,
    std: float,
    channels_last: bool,
    seed: int,
) -> None:
    """Any number of ranks and norms, of any sizes, are one batch of each norm in float64."""
    generator = torch.Generator().manual_seed(seed)
    channels = [c for c, _ in norms]
    xs, grads = [
        [torch.randn(sum(images), c, s, s, generator=generator) * scale + shift for c, s in norms]
        for scale, shift in ((std, mean), (1.0, 0.0))
    ]

    expected = []
    for norm, x, grad in zip(_norms(channels).double(), xs, grads, strict=True):
        x = x.double().requires_grad_()  # noqa: PLW2901 (the same values)
        y = norm(x)
        y.backward(grad.double())
        expected.append((y.detach(), x.grad, norm))

    def rank(number: int, all_reduce_sum: Callable[[Tensor], Tensor]) -> Any:
        first = sum(images[:number])
        own = slice(first, first + images[number])
        layout = torch.channels_last if channels_last else torch.contiguous_format
        inputs = [
            x[own]
            .clone(memory_format=torch.contiguous_format)
            .to(memory_format=layout)
            .requires_grad_()
            for x in xs
        ]
        synced = convert_sync_batchnorm(_norms(channels), all_reduce_sum)
        ys = normalize_together(list(synced), inputs)
        torch.autograd.backward(ys, [grad[own] for grad in grads])
        return [(y.detach(), x.grad, n) for y, x, n in zip(ys, inputs, synced, strict=True)]

    results = _ranks(len(images), rank)
    for number, (y, grad_x, norm) in enumerate(expected):
        of_ranks = [result[number] for result in results]
        # Float32 holds x with an error of mean * 2**-24, which the norm divides by std.
        tolerance = 2e-5 + abs(mean) / std * 1e-6

        def close(actual: Tensor, wanted: Tensor, atol: float = tolerance) -> None:
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=atol * scale)

        close(torch.cat([one for one, _, _ in of_ranks]), y)
        close(torch.cat([one for _, one, _ in of_ranks]) * std, grad_x * std)
        for name in ("weight", "bias"):
            close(sum(getattr(n, name).grad for _, _, n in of_ranks), getattr(norm, name).grad)
        for _, _, synced in of_ranks:
            close(synced.running_mean, norm.running_mean, 1e-6)
            close(synced.running_var / std**2, norm.running_var / std**2, tolerance)
            assert int(synced.num_batches_tracked) == 1


@pytest.mark.usefixtures("_kernels")
def test_a_detector_on_two_ranks_is_one_on_all_images() -> None:
    """Loss within 1e-6, gradients within 1e-5 of their norm, whatever each rank's share."""
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    torch.manual_seed(1)
    detectors = [build_detector("tiny", 3, image_size=(64, 64))]
    detectors += [copy.deepcopy(detectors[0]) for _ in range(2)]

    def step(detector: nn.Module, samples: slice) -> tuple[Any, Any, Any]:
        logits, regressions = detector(images[samples])
        loss = sum((x.sigmoid() - 0.3).square().sum() for x in (*logits, *regressions)) / 1000
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in detector.parameters()])
        return loss.detach(), gradients, detector.state_dict()

    def rank(number: int, all_reduce_sum: Callable[[Tensor], Tensor]) -> Any:
        synced = convert_sync_batchnorm(detectors[1 + number], all_reduce_sum)
        return step(synced, slice(0, 2) if number == 0 else slice(2, 6))

    loss, gradients, state = step(detectors[0], slice(0, 6))
    ranks = _ranks(2, rank)
    assert float(ranks[0][0] + ranks[1][0]) == pytest.approx(float(loss), rel=1e-6)
    assert (ranks[0][1] + ranks[1][1] - gradients).norm() < 1e-5 * gradients.norm()
    for _, _, own in ranks:
        assert list(own) == list(state)
        torch.testing.assert_close(own, state, rtol=1e-5, atol=1e-6)


class _Copies(TorchDispatchMode):
    """Operations that read one device and write another."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
        if len({x.device for x in tensors if isinstance(x, Tensor) and x.dim()}) > 1:
            self.found.append(str(func))
        return result


def test_nothing_is_copied_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, operation in OPERATIONS.items():
        monkeypatch.setattr(torch, name, operation)
    context = SimpleNamespace(mark_non_differentiable=lambda *_: None)
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    group: Any = SimpleNamespace(
        connection=SimpleNamespace(all_reduce_sum=Tensor.clone), eps=[1e-3, 1e-3], channels=[4, 3]
    )
    with FakeTensorMode(), _Copies() as copies:
        xs = [torch.ones(2, c, 5, 5, device="cuda") for c in group.channels]
        weights = [torch.ones(c, device="cuda") for c in group.channels]
        ys = sync_batchnorm._Normalize.forward(context, group, *xs, *weights, *weights)
        grads = sync_batchnorm._Normalize.backward(context, *ys)
    assert {x.device.type for x in (*ys, *grads[1:]) if x is not None} == {"cuda"}
    assert copies.found == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(layout: torch.memory_format, dtype: torch.dtype) -> None:
    results = []
    for device in ("cpu", "cuda"):
        x = torch.randn(4, 6, 9, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1
        x = x.to(dtype).to(device, memory_format=layout).requires_grad_()
        synced = convert_sync_batchnorm(_norms([6, 6]).to(device), Tensor.clone)
        ys = normalize_together(list(synced), [x, x])
        (ys[0] * ys[1].sin()).sum().backward()
        outcome = [*ys, x.grad, *(p.grad for p in synced.parameters()), *synced.buffers()]
        results.append([tensor.detach().cpu().double() for tensor in outcome])
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for one, other in zip(*results, strict=True):
        scale = max(1.0, float(one.abs().max()))
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance * scale)
