"""Images in a folder that travels to a machine without internet.

The folder holds SHA256.zst for each layer, compressed, and images.json: for each image its name,
its configuration and the sizes of its layers.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cocodata.files import atomic_path, write_atomically
from cocodata.sync.store import HostError
from container_images import engine
from container_images.archive import ContainerImage
from container_images.errors import ImageError
from container_images.export import BlobCache

_LIST = "images.json"


def save_images(
    cache: BlobCache, names: Sequence[str], folder: Path, show: Callable[[str], None]
) -> None:
    """Write images of this machine's engine into a folder; what it has already is kept.

    Raises:
        ImageError: the engine does not have one, or the disk is too small.
    """
    images = cache.images(names, show)
    layers = {layer for image in images.values() for layer in image.layers}
    cache.require(list(images.values()), layers)
    for file in folder.iterdir():
        if file.name != _LIST and file.name.partition(".")[0] not in layers:
            file.unlink()
    for layer in sorted(layers):
        if not (file := folder / f"{layer}.zst").is_file():
            with atomic_path(file) as temporary:
                options = ["--quiet", "--threads=0", "--force", "-o", str(temporary)]
                _zstd(*options, str(cache.blobs / layer))
    entries = [image.to_dict() for image in images.values()]
    write_atomically(folder / _LIST, json.dumps(entries, indent=1))


def load_images(folder: Path, show: Callable[[str], None]) -> None:
    """Load into this machine's engine what it lacks of the images in a folder.

    Raises:
        ImageError: a layer is missing or damaged, or the engine refuses an image.
    """
    images = [ContainerImage.from_dict(each) for each in json.loads((folder / _LIST).read_text())]
    for image in images:
        found = engine.state(image)
        show(f"{image.names[0]}: {found if found == 'ok' else 'loading'}")
        if found == "ok":
            continue
        try:
            missing = engine.missing_layers([image])
            with tempfile.TemporaryDirectory(dir=folder, prefix=".layers-") as unpacked:
                for layer in missing:
                    target = str(Path(unpacked) / layer)
                    _zstd("--quiet", "--decompress", "-o", target, str(folder / f"{layer}.zst"))
                engine.load(image, Path(unpacked), missing)
        except HostError as error:
            raise ImageError(str(error)) from None


def _zstd(*arguments: str) -> None:
    done = subprocess.run(["zstd", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"zstd: {done.stderr.strip()}")
