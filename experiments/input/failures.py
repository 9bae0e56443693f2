"""Errors that name the image file that cannot be used, and the reason."""

import logging
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from cocodata.format.images import ImageError, check_decoding
from experiments.input.decoder import decoder_arguments
from experiments.input.input_config import InputConfig

_DALI_PROBLEM = "DALI cannot decode it"
_log = logging.getLogger(__name__)


class SampleError(RuntimeError):
    """An image file has become unusable since the run started.

    Attributes:
        path: The file.
        epoch: The epoch of the sample, from 0; None in evaluation.
        reason: What is wrong with the file.
    """

    def __init__(self, path: Path, epoch: int | None, reason: str, *, others: int = 0) -> None:
        when = "in evaluation" if epoch is None else f"in epoch {epoch}"
        more = f" {others} more of the files that were tried are unusable too." if others else ""
        super().__init__(
            f"{path}: {reason} ({when}).{more} Restore the file, verify the data set against its "
            "manifest (make coco-verify), and resume the run."
        )
        self.path = path
        self.epoch = epoch
        self.reason = reason


def file_problem(path: Path, width: int, height: int) -> str | None:
    """Return what is wrong with an image file that should have this size; None if nothing is."""
    try:
        check_decoding(path, (width, height))
    except ImageError as error:
        return str(error)
    return None


def dali_problem(path: Path, config: InputConfig) -> str | None:
    """Return why DALI cannot decode a file that Pillow can read; None if it can."""
    device_id = config.device_id if config.device == "gpu" else None

    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    def decode() -> object:
        encoded = fn.io.file.read(fn.external_source(name="path", dtype=types.UINT8, ndim=1))
        return fn.decoders.image(
            encoded,
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            **decoder_arguments(config),
        )

    try:
        decode().run(path=[np.frombuffer(str(path).encode(), np.uint8)])
    except Exception as error:  # DALI raises whatever fits
        _log.debug("DALI on %s: %s", path, error)
        return _DALI_PROBLEM
    return None
