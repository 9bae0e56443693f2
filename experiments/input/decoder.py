"""Which decoder reads JPEGs: the processor, CUDA, or a GPU's own JPEG engines next to CUDA."""

import contextlib
import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from experiments.input.input_config import InputConfig
from experiments.runtime.gpus import DeviceError
from experiments.settings.hparams import HParams

# The share of images that go to the engines; DALI's default.
HARDWARE_SHARE = 0.65
# COCO's largest images, and what nvJPEG needs for one of them: three coefficients of two bytes for
# each pixel in page-locked memory and on the device, and there three planes of one byte as well.
# Its buffers are multiples of these sizes, which saves their growth: each thread of the decoder
# allocates one on the device and two in page-locked memory. DALI's defaults are 16 and 8 MiB.
# Larger images are decoded too, after some allocations.
LARGEST_SIDE = 640
PINNED_BUFFER = 3 * 2**20
DEVICE_BUFFER = 4 * 2**20
# What libnvjpeg opens for the engines; in a container, part of the driver's capability `video`.
_VIDEO_LIBRARY = "libnvcuvid.so.1"
_NVJPEG = "libnvjpeg.so.13"
_BACKEND_HARDWARE = 3  # nvjpegBackend_t in nvjpeg.h
_WAY_OUT = "Or set hardware_decoder: false"


def input_device(hparams: HParams, device: torch.device) -> torch.device:
    """Return the device that decodes a rank's images, given the one that it trains on.

    Raises:
        DeviceError: It should be a GPU, but the rank trains on the processor.
    """
    if hparams.input_device == "gpu" and device.type != "cuda":
        raise DeviceError(
            "input_device is gpu, but this run has no GPU: torch sees none here. "
            "Set input_device: auto"
        )
    return torch.device("cpu") if hparams.input_device == "cpu" else device


def decoder_arguments(config: InputConfig) -> dict[str, Any]:
    """Return the arguments of DALI's decoder that depend on the device."""
    if config.device == "cpu":
        return {"device": "cpu"}
    side = LARGEST_SIDE if config.hardware_decoder else 0
    return {
        "device": "mixed",
        "hw_decoder_load": HARDWARE_SHARE if config.hardware_decoder else 0.0,
        "preallocate_width_hint": side,
        "preallocate_height_hint": side,
        "host_memory_padding": PINNED_BUFFER,
        "device_memory_padding": DEVICE_BUFFER,
    }


def jpeg_decoder(device: torch.device, *, hardware: bool) -> str:
    """Return what decodes the training images, in words.

    Args:
        device: The device that decodes.
        hardware: Whether the GPU's JPEG engines take part.

    Raises:
        DeviceError: They should, but the GPU has none or the process cannot use them.
    """
    if not hardware:
        return "CUDA" if device.type == "cuda" else "CPU"
    if device.type != "cuda":
        raise DeviceError(
            "hardware_decoder is set, but images are decoded on the processor here. "
            "Set hardware_decoder: false"
        )
    try:
        ctypes.CDLL(_VIDEO_LIBRARY)
    except OSError:
        raise DeviceError(
            f"hardware_decoder is set, but {_VIDEO_LIBRARY} is missing, with which libnvjpeg uses "
            "the engines: the container was started without the driver's capability video "
            f"(NVIDIA_DRIVER_CAPABILITIES={os.environ.get('NVIDIA_DRIVER_CAPABILITIES', '')}). "
            f"docs/gpu-hosts.md says which engines and settings of Docker give it. {_WAY_OUT}"
        ) from None
    engines = _jpeg_engines(device)
    if not engines:
        raise DeviceError(
            f"hardware_decoder is set, but {torch.cuda.get_device_name(device)} has no JPEG "
            "engine: A100, A30, H100, H200 and B200 have some, most other GPUs have none. "
            f"{_WAY_OUT}"
        )
    return f"CUDA and {engines} JPEG engines"


def _jpeg_engines(device: torch.device) -> int:
    """Ask libnvjpeg for the number of a GPU's JPEG engines, as DALI's decoder does."""
    library = ctypes.CDLL(str(_library(_NVJPEG)))
    handle = ctypes.c_void_p()
    engines, cores = ctypes.c_uint(), ctypes.c_uint()
    with torch.cuda.device(device) if torch.cuda.is_available() else contextlib.nullcontext():
        failed = library.nvjpegCreateEx(_BACKEND_HARDWARE, None, None, 0, ctypes.byref(handle))
        if failed:
            return 0
        failed = library.nvjpegGetHardwareDecoderInfo(
            handle, ctypes.byref(engines), ctypes.byref(cores)
        )
        library.nvjpegDestroy(handle)
    return 0 if failed else engines.value


def _library(name: str) -> Path | str:
    """Return where NVIDIA's wheels have a library; its name if they do not, for the system's."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob(f"*/lib/{name}"):
            return file
    return name
