"""Exporting images of this machine's engine into blobs, which are kept and used again."""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cocodata.download.download import require_free_space
from cocodata.files import write_atomically
from cocodata.sync.store import HostError
from cocodata.sync.torrent import FileHashes, encode_torrent, hash_file
from container_images import engine
from container_images.archive import ContainerImage, DamagedError, split_archive, verify_blob
from container_images.errors import ImageError

PIECE = 1 << 20
"""Bytes of a piece of a layer. The same for all layers, so that any of them make a torrent."""


def plain_name(name: str) -> str:
    """Return an image's name and tag without a digest."""
    plain = name.partition("@")[0]
    return plain if ":" in plain.rpartition("/")[2] else f"{plain}:latest"


def content_name(name: str, digest: str) -> str:
    """Return the name of an image whose tag is its content's: nothing else can be meant by it."""
    return f"{plain_name(name).rpartition(':')[0]}:{digest}"


class BlobCache:
    """The layers of images on this machine.

    `folder` holds blobs/SHA256 (layers as uncompressed tar archives), pieces/SHA256 (the hashes of
    a layer's pieces) and images/ID.json (an image's configuration and the sizes of its layers).
    """

    def __init__(self, folder: Path) -> None:
        """Create the folders."""
        self.folder = folder
        self.blobs = folder / "blobs"
        for part in ("blobs", "pieces", "images"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def image(self, name: str, show: Callable[[str], None] = lambda _: None) -> ContainerImage:
        """Return an image of the engine, with a name on hosts that is the content's.

        It is exported unless that was done before.

        Raises:
            ImageError: the engine does not have it, or the disk is too small.
        """
        report = engine.inspect(plain_name(name))
        if report is None:
            raise ImageError(
                f"this machine's Docker lacks {plain_name(name)}. Build the task image with "
                "`make image`; get Determined's and PostgreSQL's with `docker pull`, or load them "
                "from an offline bundle"
            )
        record = self._record(report["Id"])
        if not record.is_file():
            show(f"exporting {plain_name(name)}")
            self._export(plain_name(name), report["Size"], record)
        image = ContainerImage.from_dict(json.loads(record.read_text()))
        names = (plain_name(name), content_name(name, image.digest))
        return replace(image, names=names)

    def images(
        self, names: Iterable[str], show: Callable[[str], None]
    ) -> dict[str, ContainerImage]:
        """Return images of the engine by name; forget those that the engine has no longer."""
        found = {name: self.image(name, show) for name in dict.fromkeys(names)}
        self.prune()
        return found

    def require(self, images: Sequence[ContainerImage], layers: Collection[str]) -> None:
        """Make sure that layers are there and whole; export their images again if not.

        Raises:
            ImageError: they cannot be exported.
        """
        for image in images:
            damaged = [layer for layer in layers if layer in image.layers and self._damaged(layer)]
            if damaged:
                for layer in damaged:
                    (self.blobs / layer).unlink(missing_ok=True)
                report = engine.inspect(image.names[0])
                if not engine.matches(report, image):
                    raise ImageError(
                        f"{image.names[0]}: changed in this machine's Docker meanwhile"
                    )
                assert report is not None
                self._export(image.names[0], report["Size"], self._record(report["Id"]))

    def torrent(self, layers: Iterable[str]) -> bytes:
        """Return the torrent of some layers, in the folder blobs."""
        return encode_torrent("blobs", {layer: self._hashes(layer) for layer in layers}, PIECE)

    def prune(self) -> None:
        """Delete what belongs to images that the engine has no longer."""
        keep: set[str] = set()
        for record in (self.folder / "images").iterdir():
            if engine.inspect(f"sha256:{record.stem}") is None:
                record.unlink()
            else:
                keep |= set(ContainerImage.from_dict(json.loads(record.read_text())).layers)
        for part in ("blobs", "pieces"):
            for file in (self.folder / part).iterdir():
                if file.name not in keep:
                    file.unlink()

    def _record(self, identity: str) -> Path:
        return self.folder / "images" / f"{identity.removeprefix('sha256:')}.json"

    def _damaged(self, layer: str) -> bool:
        try:
            verify_blob(self.blobs, layer)
        except DamagedError:
            return True
        return False

    def _hashes(self, layer: str) -> FileHashes:
        """Return the hashes of a layer's pieces, which are computed once."""
        file, size = self.folder / "pieces" / layer, (self.blobs / layer).stat().st_size
        if not file.is_file():
            found = hash_file(self.blobs / layer, PIECE)
            write_atomically(file, found.root + b"".join(found.pieces))
        content = file.read_bytes()
        parts = [content[at : at + 32] for at in range(0, len(content), 32)]
        return FileHashes(size, parts[0], tuple(parts[1:]))

    def _export(self, name: str, size: int, record: Path) -> None:
        require_free_space(self.folder, size, name)
        incoming = self.folder / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        # Layers that are there already are not written again.
        for blob in self.blobs.iterdir():
            (incoming / blob.name).hardlink_to(blob)
        try:
            with engine.saved(name) as stream:
                small = split_archive(stream, incoming)
            (listed,) = json.loads(small["manifest.json"])
            config = small[listed["Config"]]
            layers = [
                layer.removeprefix("sha256:") for layer in json.loads(config)["rootfs"]["diff_ids"]
            ]
            sizes = []
            for layer in layers:
                file = incoming / layer
                if not file.is_file():
                    raise ImageError(f"{name}: docker save left out layer {layer}")
                sizes.append(file.stat().st_size)
            for layer in set(layers):
                (incoming / layer).replace(self.blobs / layer)
        except (KeyError, ValueError, DamagedError, HostError) as error:
            raise ImageError(f"{name}: cannot be exported ({error})") from None
        finally:
            shutil.rmtree(incoming)
        image = ContainerImage((name,), config, tuple(sizes))
        write_atomically(record, json.dumps(image.to_dict()))
