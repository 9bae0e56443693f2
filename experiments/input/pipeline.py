"""The DALI graph for images: read, decode, crop and resize, normalise, pad.

Training and evaluation use the same graph with different windows, and CPU and GPU use it with
different devices of its operators.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import Pipeline, backend, fn, pipeline_def, types

from experiments.input.augmentation import Geometry
from experiments.input.decoder import decoder_arguments
from experiments.input.input_config import INTERPOLATIONS, InputConfig

JPEG_END = (0xFF, 0xD9)

# Paths, start and end of the window in source pixels, its size in input pixels, interpolations.
PipelineInputs = tuple[list[npt.NDArray[np.uint8]], *tuple[npt.NDArray[Any], ...]]

_DALI_INTERPOLATION = {
    "bilinear": types.INTERP_LINEAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}
_DALI_CODES = np.array([int(_DALI_INTERPOLATION[name]) for name in INTERPOLATIONS], np.int32)


def pipeline_inputs(paths: list[Path], geometry: Geometry) -> PipelineInputs:
    """Return the graph's inputs for these images."""
    start, end = geometry.source_window()
    return (
        [np.frombuffer(os.fsencode(path), np.uint8) for path in paths],
        start,
        end,
        geometry.visible_size.astype(np.float32),
        _DALI_CODES[geometry.interpolation],
    )


def image_pipeline(
    config: InputConfig, source: Callable[[], PipelineInputs], *, max_batch_size: int
) -> Pipeline:
    """Create the pipeline, without building it.

    Its outputs are the normalised images (float32, CHW, or HWC if ``config.channels_last``), the
    shape (H, W, C) of each stored image, and the last two bytes of each file.

    Args:
        config: Configuration of the input pipeline.
        source: Called for each batch; raises StopIteration after the last.
        max_batch_size: Maximum size of a batch.
    """
    graph = _graph(
        config,
        source,
        batch_size=max_batch_size,
        num_threads=config.threads,
        device_id=config.device_id if config.device == "gpu" else None,
        prefetch_queue_depth=config.prefetch,
    )
    assert isinstance(graph, Pipeline)
    return graph


def release_memory() -> None:
    """Free what DALI's pools hold for later pipelines, on GPUs and page-locked."""
    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]  # DALI's stubs leave it out


@pipeline_def(enable_conditionals=False)
def _graph(config: InputConfig, source: Callable[[], PipelineInputs]) -> Any:
    paths, start, end, size, interpolation = fn.external_source(
        source=source,
        num_outputs=5,
        batch=True,
        dtype=[types.UINT8, types.FLOAT, types.FLOAT, types.FLOAT, types.INT32],
        ndim=[1, 1, 1, 1, 0],
    )
    # Without mmap: if a mapped file is truncated while it is read, the process is killed (SIGBUS).
    encoded = fn.io.file.read(paths, dont_use_mmap=True)
    # Annotations are for the pixels as stored, so EXIF orientation is ignored. With fancy
    # upsampling, GPU decoders interpolate chroma like libjpeg, so images are the same on both
    # devices. How images are shared between a GPU's JPEG engines and CUDA depends on the batch, and
    # their pixels differ: without the engines, a run can be repeated.
    images = fn.decoders.image(
        encoded,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        **decoder_arguments(config),
    )
    # Without antialiasing, pixels of downsized images differ from Pillow's by up to 35 of 255.
    resized = fn.resize(
        images,
        size=size,
        roi_start=start,
        roi_end=end,
        interp_type=fn.reinterpret(interpolation, dtype=types.INTERP_TYPE),
        antialias=True,
    )
    mean, std = 255 * np.array(config.mean), 255 * np.array(config.std)
    normalised = fn.crop_mirror_normalize(
        resized,
        crop=config.image_size,
        crop_pos_x=0.0,
        crop_pos_y=0.0,
        out_of_bounds_policy="pad",
        fill_values=((np.array(config.fill_rgb) - mean) / std).tolist(),
        mean=mean.tolist(),
        std=std.tolist(),
        output_layout="HWC" if config.channels_last else "CHW",
    )
    return normalised, images.shape(), encoded[-2:]
