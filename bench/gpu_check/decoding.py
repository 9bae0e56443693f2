"""Ordinary and odd JPEGs, decoded by the input pipeline and by Pillow."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.measuring import Device, Measurement, Settings
from cocodata import Split, load_split
from experiments.input import EvalLoader, InputConfig
from experiments.input.failures import SampleError

_SIDE = 128
_ORIENTATION = 0x0112

Picture = Image.Image


def _saved(picture: Picture, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def _rotated(picture: Picture) -> bytes:
    """Return a JPEG that says it is stored turned by 90 degrees."""
    exif = picture.getexif()
    exif[_ORIENTATION] = 6
    return _saved(picture, exif=exif)


KINDS: dict[str, Callable[[Picture], bytes]] = {
    "4:2:0": lambda picture: _saved(picture, subsampling=2),
    "4:2:2": lambda picture: _saved(picture, subsampling=1),
    "4:4:4": lambda picture: _saved(picture, subsampling=0),
    "quality 30": lambda picture: _saved(picture, quality=30),
    "progressive": lambda picture: _saved(picture, progressive=True),
    "optimized": lambda picture: _saved(picture, optimize=True),
    "restart markers": lambda picture: _saved(picture, restart_marker_blocks=4),
    "grayscale": lambda picture: _saved(picture.convert("L")),
    "CMYK": lambda picture: _saved(picture.convert("CMYK")),
    "EXIF orientation": _rotated,
    "odd size": lambda picture: _saved(picture.crop((0, 0, _SIDE - 1, _SIDE))),
    "bytes after the end": lambda picture: _saved(picture) + b"\0" * 100,
}


def photo() -> Picture:
    """Return a picture with smooth areas, as photographs have them."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] * 4.0
    waves = [np.sin(x / 83 + y / 191), np.cos(x / 97 - y / 71), np.sin(y / 89)]
    return Image.fromarray((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))


class Decoding:
    """Decodes one file of each kind, and one that is cut off.

    Args:
        settings: Settings.
        device: The device that decodes.
    """

    def __init__(self, settings: Settings, *, device: Device) -> None:
        self._folder = settings.scratch / "decoding"
        folder = self._folder / "val2017"
        folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "annotations").mkdir(exist_ok=True)
        self._settings = settings
        self._gpu = device == "cuda"
        self._files = {}
        for number, (kind, save) in enumerate(KINDS.items()):
            self._files[kind] = folder / f"{number}.jpg"
            self._files[kind].write_bytes(save(photo()))
        self._truncated = folder / "truncated.jpg"
        content = _saved(photo())
        self._truncated.write_bytes(content[: len(content) // 2])

    def warm_up(self) -> None:
        """Do nothing: nothing is timed."""

    def measure(self, seconds: float) -> Measurement:
        """Return the mean difference by kind, in levels of 255; and whether the cut one is named.

        The kinds are decoded as one batch, then each alone: pixels must not depend on neighbours.
        """
        files = list(self._files.values())
        together = self._decode(files)
        outcome = {}
        for kind, pixels in zip(self._files, together, strict=True):
            with Image.open(self._files[kind]) as image:
                expected = np.asarray(image.convert("RGB"), np.float32)
            height, width = expected.shape[:2]
            outcome[kind] = float(np.abs(pixels[:height, :width] - expected).mean())
        alone = [self._decode([file])[0] for file in files]
        outcome["alone and in a batch"] = float(
            max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True))
        )
        outcome["truncated"] = float(self._is_reported())
        return Measurement(work=len(files), seconds=1.0, outcome=outcome)

    def _is_reported(self) -> bool:
        try:
            self._decode([self._truncated], size=(_SIDE, _SIDE))
        except SampleError as error:
            return error.path == self._truncated
        return False

    def _decode(self, files: list[Path], size: tuple[int, int] | None = None) -> Any:
        """Return pixels (N, H, W, 3) from 0 to 255; images keep their size and are padded."""
        config = InputConfig(
            image_size=(_SIDE, _SIDE),
            device="gpu" if self._gpu else "cpu",
            threads=self._settings.threads,
        )
        with EvalLoader(self._split(files, size), config, batch_size=len(files)) as loader:
            (batch,) = list(loader)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
        return (255 * (batch["image"].cpu() * std + mean)).permute(0, 2, 3, 1).numpy()

    def _split(self, files: list[Path], size: tuple[int, int] | None) -> Split:
        """Return a split of these files, which have this size or that in their headers."""
        images = []
        for number, file in enumerate(files):
            width, height = size or _size(file)
            images.append(
                {"id": number + 1, "file_name": file.name, "width": width, "height": height}
            )
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "shape"}]}
        annotations = self._folder / "annotations" / "instances_val2017.json"
        annotations.write_text(json.dumps(content))
        return load_split(self._folder, "val2017")


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size
