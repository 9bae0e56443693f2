"""Why an image could not be used, and which one it was."""

import logging
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
from nvidia.dali import fn, pipeline_def, types

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
        size = path.stat().st_size
        if size == 0:
            return "the file is empty"
        with PIL.Image.open(path) as image:
            if image.size != (width, height):
                return size_fault(image.size, (width, height))
            image.load()
    except FileNotFoundError:
        return "the file is missing"
    except PIL.UnidentifiedImageError:
        return f"its {size} bytes are not an image"
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's readers raise all three
        return f"it cannot be read: {error}"
    return None


def size_fault(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Say that an image's (width, height) is not the annotated one."""
    return (
        f"it is {found[0]} x {found[1]} pixels, and the annotations are for "
        f"{expected[0]} x {expected[1]}"
    )


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
