"""The graph for a GPU: constructed on every machine, run on those with a GPU."""

import dataclasses

import pytest
import torch

from experiments.input import EvalLoader, InputConfig, TrainLoader
from experiments.input.decoder import HARDWARE_SHARE, LARGEST_SIDE
from experiments.input.pipeline import _graph
from experiments.runtime.cores import MAX_INPUT_THREADS
from tests.experiments.input.dali_graphs import Graph, read_graph

GPU = InputConfig((64, 96), device="gpu", threads=2, interpolation="random", seed=3)
EVALUATION = dataclasses.replace(GPU, interpolation="bilinear")


def graph(config: InputConfig) -> Graph:
    """Without a GPU, DALI cannot build a pipeline for one, but it checks and serializes it."""
    pipeline = _graph(
        config,
        lambda: None,
        batch_size=4,
        num_threads=config.threads,
        device_id=None,
        prefetch_queue_depth=config.prefetch,
    )
    return read_graph(pipeline.serialize())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("hardware", [False, True])
def test_where_the_operators_of_the_gpu_graph_run(channels_last, hardware):
    config = dataclasses.replace(GPU, channels_last=channels_last, hardware_decoder=hardware)
    found = graph(config)
    devices = {name: operator.device for name, operator in found.operators}
    assert devices == {
        **dict.fromkeys(("ExternalSource", "io__file__Read", "Reinterpret"), "cpu"),
        "decoders__Image": "mixed",
        **dict.fromkeys(("Resize", "CropMirrorNormalize"), "gpu"),
        **dict.fromkeys(("_Shape", "_TensorSubscript"), "cpu"),
    }
    assert (found.threads, found.batch_size) == (2, 4)
    # The host checks shapes and ends of files, and waits for no image on the GPU.
    assert found.outputs == ["gpu", "cpu", "cpu"]
    for name, operator in found.operators:
        if operator.device == "cpu" and name != "_Shape":  # which needs no pixels
            assert {device for _, device in operator.inputs} <= {"cpu"}, name
    layout = found.only("CropMirrorNormalize").arguments["output_layout"]
    assert layout == ("HWC" if channels_last else "CHW")


def test_the_cpu_graph_needs_no_gpu():
    found = graph(dataclasses.replace(GPU, device="cpu", hardware_decoder=False))
    assert {operator.device for _, operator in found.operators} == {"cpu"}
    assert found.outputs == ["cpu"] * 3
    decoder = found.only("decoders__Image").arguments
    assert not {"hw_decoder_load", "device_memory_padding", "host_memory_padding"} & decoder.keys()


@pytest.mark.parametrize("hardware", [False, True])
def test_the_decoders_memory_is_bounded(hardware):
    """A buffer on the device and two in page-locked memory for each of at most 8 threads."""
    config = dataclasses.replace(GPU, threads=MAX_INPUT_THREADS, hardware_decoder=hardware)
    found = graph(config)
    decoder = found.only("decoders__Image").arguments
    pixels = LARGEST_SIDE**2
    assert decoder["host_memory_padding"] >= 3 * 2 * pixels
    assert decoder["device_memory_padding"] >= 3 * (2 + 1) * pixels
    assert found.threads * decoder["device_memory_padding"] <= 32 * 2**20
    assert found.threads * 2 * decoder["host_memory_padding"] <= 48 * 2**20
    side = LARGEST_SIDE if hardware else 0
    assert decoder["preallocate_width_hint"] == decoder["preallocate_height_hint"] == side
    assert decoder["hw_decoder_load"] == pytest.approx(HARDWARE_SHARE if hardware else 0)
    assert decoder["jpeg_fancy_upsampling"] == 1


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


@pytest.mark.gpu
def test_closed_loaders_give_their_memory_back(jpeg_split):
    before = torch.cuda.mem_get_info()[0]
    for _ in range(3):
        with EvalLoader(jpeg_split, EVALUATION, batch_size=13) as loader:
            assert len(list(loader)) == 1
    # What CUDA's context and the decoder's libraries take stays.
    assert before - torch.cuda.mem_get_info()[0] < 2**30


@pytest.mark.gpu
def test_pixels_of_a_gpu_do_not_depend_on_neighbours(jpeg_split):
    def images(batch_size, threads):
        config = dataclasses.replace(EVALUATION, threads=threads)
        with EvalLoader(jpeg_split, config, batch_size=batch_size) as loader:
            return torch.cat([batch["image"] for batch in loader])

    alone = images(1, 1)
    for batch_size, threads in ((13, 1), (13, 8), (4, 3)):
        assert torch.equal(images(batch_size, threads), alone)
