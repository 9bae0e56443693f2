"""The graph for a GPU: constructed on every machine, run on those with a GPU."""

import dataclasses

import pytest
import torch

from experiments.input import EvalLoader, InputConfig, TrainLoader
from experiments.input.pipeline import _graph

GPU = InputConfig((64, 96), device="gpu", threads=2, interpolation="random", seed=3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gpu_graph_can_be_constructed(channels_last):
    """Without a GPU, DALI cannot build such a pipeline, but it checks the operators."""

    def serialized(device: str) -> bytes:
        config = dataclasses.replace(GPU, channels_last=channels_last, device=device)
        return _graph(config, lambda: None, batch_size=4, num_threads=1, device_id=None).serialize()

    assert serialized("gpu").count(b"mixed") == 1
    assert serialized("gpu").count(b"gpu") > 2
    assert b"mixed" not in serialized("cpu")
    assert b"gpu" not in serialized("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(jpeg_split):
    with pytest.raises(ValueError, match=r"device is 'gpu'.*no GPU"):
        TrainLoader(jpeg_split, GPU, global_batch_size=8)


@pytest.mark.gpu
@pytest.mark.parametrize("train", [True, False])
def test_gpu_batches_equal_cpu_batches(jpeg_split, train):
    batches = {}
    for device in ("cpu", "gpu"):
        if train:
            config = dataclasses.replace(GPU, device=device)
            with TrainLoader(jpeg_split, config, global_batch_size=8) as loader:
                batches[device] = [next(loader) for _ in range(4)]
        else:
            config = dataclasses.replace(GPU, device=device, interpolation="bilinear")
            with EvalLoader(jpeg_split, config, batch_size=4) as loader:
                batches[device] = list(loader)
    for cpu, gpu in zip(batches["cpu"], batches["gpu"], strict=True):
        for key, tensor in cpu.items():
            assert gpu[key].device.type == "cuda"
            if key != "image":
                assert torch.equal(gpu[key].cpu(), tensor)
        # Decoding and resampling round differently, by one or two levels of 255.
        difference = (gpu["image"].cpu() - cpu["image"]).abs().mean() * 0.225 * 255
        assert difference < 2


@pytest.mark.gpu
def test_gpu_batches_own_their_memory(jpeg_split):
    with TrainLoader(jpeg_split, GPU, global_batch_size=8) as loader:
        held = [next(loader) for _ in range(4)]
        copies = [batch["image"].clone() for batch in held]
        for _ in range(8):
            next(loader)["image"].fill_(7.0)
    for batch, copy in zip(held, copies, strict=True):
        assert torch.equal(batch["image"], copy)
