"""Which decoder reads JPEGs, with stand-ins for the driver's and nvJPEG's libraries."""

import ctypes
from typing import Any

import pytest
import torch

from experiments.input import decoder
from experiments.input.decoder import input_device, jpeg_decoder
from experiments.runtime.gpus import DeviceError
from experiments.settings.hparams import HParamError, parse_hparams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class Nvjpeg:
    """libnvjpeg on a GPU with this many JPEG engines."""

    def __init__(self, engines: int, *, created: int = 0) -> None:
        self.engines, self.created, self.destroyed = engines, created, 0

    def nvjpegCreateEx(self, backend: int, *rest: Any) -> int:  # noqa: N802
        assert backend == 3
        assert rest[:3] == (None, None, 0)
        return self.created

    def nvjpegGetHardwareDecoderInfo(self, handle: Any, engines: Any, cores: Any) -> int:  # noqa: N802
        engines._obj.value = self.engines
        return 0

    def nvjpegDestroy(self, handle: Any) -> int:  # noqa: N802
        self.destroyed += 1
        return 0


def machine(monkeypatch: pytest.MonkeyPatch, *, video: bool, nvjpeg: Nvjpeg) -> None:
    def load(name: str) -> Any:
        if "nvcuvid" in name and not video:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return nvjpeg

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA of test")


def test_without_the_setting_no_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} was opened"))
    assert jpeg_decoder(CPU, hardware=False) == "CPU"
    assert jpeg_decoder(GPU, hardware=False) == "CUDA"


def test_a_gpu_with_engines_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nvjpeg = Nvjpeg(7)
    machine(monkeypatch, video=True, nvjpeg=nvjpeg)
    assert jpeg_decoder(GPU, hardware=True) == "CUDA and 7 JPEG engines"
    assert nvjpeg.destroyed == 1


@pytest.mark.parametrize("nvjpeg", [Nvjpeg(0), Nvjpeg(7, created=9)])
def test_a_gpu_without_engines_is_reported(monkeypatch: pytest.MonkeyPatch, nvjpeg: Nvjpeg) -> None:
    machine(monkeypatch, video=True, nvjpeg=nvjpeg)
    with pytest.raises(DeviceError, match=r"NVIDIA of test has no JPEG engine.*A100"):
        jpeg_decoder(GPU, hardware=True)


def test_a_container_without_the_video_library_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, video=False, nvjpeg=Nvjpeg(7))
    monkeypatch.setenv("NVIDIA_DRIVER_CAPABILITIES", "compute,utility")
    with pytest.raises(DeviceError, match=r"libnvcuvid\.so\.1 is missing.*=compute,utility\)"):
        jpeg_decoder(GPU, hardware=True)


def test_the_setting_needs_a_gpu_that_decodes() -> None:
    with pytest.raises(DeviceError, match="decoded on the processor here"):
        jpeg_decoder(CPU, hardware=True)
    with pytest.raises(HParamError, match="acts on a GPU only"):
        parse_hparams({"hardware_decoder": True, "input_device": "cpu"})


def test_the_device_that_decodes() -> None:
    for chosen in ("auto", "gpu"):
        assert input_device(parse_hparams({"input_device": chosen}), GPU) == GPU
    assert input_device(parse_hparams({"input_device": "cpu"}), GPU) == CPU
    for chosen in ("auto", "cpu"):
        assert input_device(parse_hparams({"input_device": chosen}), CPU) == CPU
    with pytest.raises(DeviceError, match=r"input_device is gpu.* Set input_device: auto"):
        input_device(parse_hparams({"input_device": "gpu"}), CPU)


def test_nvidias_wheels_have_the_library() -> None:
    assert str(decoder._library("libnvjpeg.so.13")).endswith("lib/libnvjpeg.so.13")
    assert decoder._library("libnothing.so.1") == "libnothing.so.1"
