"""Decoding alone: an upper limit for input pipelines."""

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from bench.measuring import Loop, Settings
from cocodata import load_split, splits


class Decoding(Loop):
    """Pillow's JPEG decoder (libjpeg-turbo), with as many threads as the other contenders."""

    def __init__(self, settings: Settings, *, training: bool) -> None:
        split = load_split(settings.data, splits(settings.data)[0 if training else 1])
        self._files = cycle([split.image_dir / name for name in split.file_names])
        self._per_step = 8 * settings.threads
        self._pool = ThreadPoolExecutor(settings.threads)

    def step(self) -> int:
        """Decode eight files per thread."""
        return sum(self._pool.map(_decode, islice(self._files, self._per_step)))


def _decode(path: Path) -> int:
    with Image.open(path) as image:
        image.convert("RGB")
    return 1
