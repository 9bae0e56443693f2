"""How batches reach a GPU: only by copies that are queued, from page-locked memory.

Without a GPU, copies are counted under fake tensors on a device named cuda, and page-locked memory
is ordinary memory that is remembered.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import backend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cocodata import Split
from experiments.input import EvalLoader, InputConfig, SampleError, TrainLoader, stream
from experiments.input.transfer import ON_HOST

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PLAIN = InputConfig((64, 96), interpolation="random", threads=2, seed=21, reprob=0.5, recount=2)
TO_GPU = dataclasses.replace(PLAIN, batch_device=CUDA)
ON_GPU = dataclasses.replace(PLAIN, device="gpu")
ON_DEVICE = {"image", "boxes", "labels", "source_scale", "source_size"}


class Copies(TorchDispatchMode):
    """Remembers the copies between devices, and refuses what makes the host wait."""

    def __init__(self, pinned: list[Tensor]) -> None:
        super().__init__()
        self.pinned, self.count = pinned, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        assert func is not torch.ops.aten._local_scalar_dense.default
        if func is torch.ops.aten.copy_.default:
            source, non_blocking = args[1], len(args) > 2 and args[2]
        elif func is torch.ops.aten._to_copy.default:
            source, non_blocking = args[0], kwargs.get("non_blocking", False)
        else:
            return result
        if source.device != result.device:
            assert (source.device, result.device) == (CPU, CUDA)
            assert non_blocking, func
            assert any(source is each for each in self.pinned), func
            self.count += 1
        return result


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was put into page-locked memory, on a machine with a GPU that no thread may touch."""
    tensors: list[Tensor] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        tensors.append(tensor.clone())
        return tensors[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(stream, "release_memory", lambda: None)
    return tensors


class DecodingGpu:
    """Stands in for DALI's pipeline on a GPU: its images are fake tensors, read without a copy."""

    def __init__(self, config: InputConfig, source: Callable[[], Any], **_: Any) -> None:
        self.config, self.source = config, source

    def build(self) -> None:
        pass

    def schedule_run(self) -> None:
        self.source()

    def outputs(self, cuda_stream: object) -> Any:
        sizes = self.source.__self__._in_flight[0].sizes  # type: ignore[attr-defined]
        count = len(sizes)
        images = torch.empty(count, 3, *self.config.image_size, device=CUDA)
        shapes = np.concatenate([sizes[:, ::-1], np.full((count, 1), 3)], axis=1)
        return (
            SimpleNamespace(as_tensor=lambda: images),
            SimpleNamespace(as_array=lambda: shapes),
            SimpleNamespace(as_array=lambda: np.tile(np.array([0xFF, 0xD9], np.uint8), (count, 1))),
        )


@pytest.mark.parametrize("config", [TO_GPU, ON_GPU], ids=["decoded by the CPU", "by the GPU"])
@pytest.mark.parametrize("training", [True, False])
def test_loading_a_batch_never_waits_for_the_gpu(
    jpeg_split: Split,
    pinned: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: InputConfig,
    training: bool,
) -> None:
    on_gpu = config.device == "gpu"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # fake tensors would set it
    if on_gpu:
        monkeypatch.setattr(stream, "image_pipeline", DecodingGpu)
        monkeypatch.setattr(torch, "from_dlpack", lambda tensor: tensor)
    loader: TrainLoader | EvalLoader
    if training:
        loader = TrainLoader(jpeg_split, config, global_batch_size=8)
    else:
        evaluation = dataclasses.replace(config, interpolation="bilinear")
        loader = EvalLoader(jpeg_split, evaluation, batch_size=4)
    with loader, FakeTensorMode(allow_non_fake_inputs=True):
        batches = iter(loader)
        with Copies(pinned) as copies:
            batch = next(batches)
        assert {name for name, tensor in batch.items() if tensor.device == CUDA} == ON_DEVICE
        assert {name for name, tensor in batch.items() if tensor.device == CPU} == ON_HOST
    rectangles = 0
    if training and on_gpu:
        assert isinstance(loader, TrainLoader)
        rectangles = len(loader._plan_batch(0).patches)
        assert rectangles > 2
    # The CPU erases before the copy; the GPU's images are made where they are.
    assert copies.count == len(ON_DEVICE) - on_gpu + rectangles


@pytest.fixture
def staged(pinned: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Batches are staged for a GPU, and then stay where they are."""
    monkeypatch.setattr(stream, "send", lambda batch, device: batch)
    return pinned


def test_staged_batches_are_those_of_the_cpu(jpeg_split: Split, staged: list[Tensor]) -> None:
    for channels_last in (False, True):
        plain, to_gpu = (
            dataclasses.replace(config, channels_last=channels_last) for config in (PLAIN, TO_GPU)
        )
        with (
            TrainLoader(jpeg_split, plain, global_batch_size=8) as expected,
            TrainLoader(jpeg_split, to_gpu, global_batch_size=8) as loader,
        ):
            for _ in range(5):
                _assert_equal(next(loader), next(expected))
    assert len(staged) >= 2 * 5 * len(ON_DEVICE)


def test_staged_passes_are_equal_even_after_an_abandoned_one(
    jpeg_split: Split, staged: list[Tensor]
) -> None:
    plain, to_gpu = (dataclasses.replace(c, interpolation="bilinear") for c in (PLAIN, TO_GPU))
    with (
        EvalLoader(jpeg_split, plain, batch_size=3) as expected,
        EvalLoader(jpeg_split, to_gpu, batch_size=3) as loader,
    ):
        reference = list(expected)
        for _ in range(2):
            next(iter(loader))
            batches = list(loader)
            assert len(batches) == len(reference)
            for one, other in zip(batches, reference, strict=True):
                _assert_equal(one, other)


def _assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.stride() == other[name].stride(), name


def test_the_memory_of_gpu_pipelines_is_released(
    jpeg_split: Split, pinned: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(backend.ReleaseUnusedMemory)  # type: ignore[attr-defined]
    released: list[bool] = []
    monkeypatch.setattr(stream, "release_memory", lambda: released.append(True))
    for config in (PLAIN, TO_GPU):
        TrainLoader(jpeg_split, config, global_batch_size=8).close()
    assert not released
    TrainLoader(jpeg_split, ON_GPU, global_batch_size=8).close()
    assert released


def test_closed_loaders_leave_no_staging_thread(jpeg_split: Split, staged: list[Tensor]) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    loader = TrainLoader(jpeg_split, TO_GPU, global_batch_size=8)
    next(loader)
    assert threads() > before
    loader.close()
    assert threads() == before


def test_errors_in_the_staging_thread_are_raised(
    jpeg_split: Split, staged: list[Tensor], tmp_path: Path
) -> None:
    split = dataclasses.replace(jpeg_split, image_dir=tmp_path)
    loader = TrainLoader(split, TO_GPU, global_batch_size=8)
    with pytest.raises(SampleError, match="the file is missing"):
        next(loader)
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_images_are_not_decoded_on_another_gpu_than_the_batches() -> None:
    with pytest.raises(ValueError, match=r"batch_device is .*it must be cuda:1"):
        dataclasses.replace(ON_GPU, device_id=1, batch_device=CUDA)


@pytest.fixture
def strict_gpu() -> Iterator[None]:
    """A GPU on which torch refuses to make the host wait."""
    torch.cuda.init()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("config", [TO_GPU, ON_GPU], ids=["decoded by the CPU", "by the GPU"])
def test_batches_arrive_on_a_gpu(jpeg_split: Split, strict_gpu: None, config: InputConfig) -> None:
    with (
        TrainLoader(jpeg_split, PLAIN, global_batch_size=8) as expected,
        TrainLoader(jpeg_split, config, global_batch_size=8) as loader,
    ):
        batches = [next(loader) for _ in range(6)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("default")
        for batch in batches:
            reference = next(expected)
            for name, tensor in batch.items():
                assert tensor.device == (CPU if name in ON_HOST else CUDA)
                if name != "image" or config is TO_GPU:
                    assert torch.equal(tensor.cpu(), reference[name]), name
