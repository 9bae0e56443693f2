"""Why an image could not be used, and which one it was."""

import logging
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from cocodata.format.images import ImageError, check_decoding

_DALI_FAULT = "DALI cannot decode it"
_log = logging.getLogger(__name__)


class SampleError(RuntimeError):
    """An image file that was sound when the run began cannot be used any more.

    Attributes:
        path: the file.
        epoch: the epoch that wanted it, from 0; None in evaluation.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, epoch: int | None, reason: str, *, others: int = 0) -> None:
        when = "in evaluation" if epoch is None else f"in epoch {epoch}"
        more = f" {others} more of the files tried cannot be used either." if others else ""
        super().__init__(
            f"{path}: {reason} ({when}).{more} Restore it from its source, verify the data set "
            "against its manifest, and resume the run."
        )
        self.path = path
        self.epoch = epoch
        self.reason = reason


def file_fault(path: Path, width: int, height: int) -> str | None:
    """What is wrong with an image file that should be this large; None if it can be read."""
    try:
        check_decoding(path, (width, height))
    except ImageError as error:
        return str(error)
    return None


def dali_fault(path: Path) -> str | None:
    """What DALI says against a file that Pillow can read; None if it decodes."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decode() -> object:
        encoded = fn.io.file.read(fn.external_source(name="path", dtype=types.UINT8, ndim=1))
        return fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)

    try:
        decode().run(path=[np.frombuffer(str(path).encode(), np.uint8)])
    except RuntimeError as error:
        _log.debug("DALI on %s: %s", path, error)
        return _DALI_FAULT
    return None
