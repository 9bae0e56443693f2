"""The commands that a host executes to get images: sent to it together with the swarm's program.

Sent to hosts: nothing but the standard library of Python 3.10.
"""

import base64
import json
import shutil
import threading
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from cocodata.sync.agent import Swarm, swarm_status
from cocodata.sync.store import HostError, lock_folder, require_free
from cocodata.sync.torrent import Torrent
from container_images import engine
from container_images.archive import ContainerImage, DamagedError, split_archive


class ImageHandler:
    """Executes commands one after the other, while a swarm runs in the background.

    Layers are in `folder`/blobs only until the engine has them.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """Remember the settings.

        Args:
            settings: folder, images (that this host needs), and whether this is the source, whose
                blobs stay.
        """
        self.folder = Path(settings["folder"])
        self.blobs = self.folder / "blobs"
        self._record = self.folder / "loaded.json"
        self.images = [ContainerImage.from_dict(each) for each in settings["images"]]
        self._is_source = bool(settings.get("source"))
        self._stopped = threading.Event()
        self._seeding: threading.Thread | None = None
        self.swarm: Swarm | None = None

    def status(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the state of each image, and which layers this host lacks.

        Unless only a check is wanted, it also takes the lock and makes sure of space for them.
        """
        states = {image.names[0]: engine.state(image) for image in self.images}
        if command.get("check"):
            return {"states": states, "missing": []}
        lock_folder(self.folder, "cluster-up")
        needed = engine.missing_layers(self.images, self._loaded())
        missing = needed - engine.images_with(needed).keys()
        present = 0
        for file in self.blobs.iterdir() if self.blobs.is_dir() else ():
            if file.name in missing:
                present += file.stat().st_blocks * 512
            else:
                file.unlink()
        sizes = {
            layer: size
            for image in self.images
            for layer, size in zip(image.layers, image.sizes, strict=True)
        }
        # Once as they arrive, and once in the engine.
        space = 2 * sum(sizes[layer] for layer in needed) - present
        if needed:
            require_free(self.folder, space, "Free some space")
        return {**swarm_status(), "states": states, "missing": sorted(missing)}

    def _loaded(self) -> dict[str, list[str]]:
        """Return the images that were loaded here: id -> layers."""
        with suppress(OSError, ValueError):
            loaded: dict[str, list[str]] = json.loads(self._record.read_text())
            return loaded
        return {}

    def join(self, command: dict[str, Any]) -> dict[str, Any]:
        """Start exchanging pieces of layers."""
        self.swarm = self._swarm(command, complete=self._is_source)
        return {}

    def _swarm(self, command: dict[str, Any], *, complete: bool) -> Swarm:
        torrent = Torrent(base64.b64decode(command["torrent"]))
        # A torrent of several files has a folder, which is named blobs.
        folder = self.folder if len(torrent.files) > 1 else self.blobs
        return Swarm(folder, command, complete=complete)

    def seed(self, command: dict[str, Any]) -> dict[str, Any]:
        """Start getting layers out of the engine, to send them to others when that is done."""
        self._seeding = threading.Thread(target=self._seed, args=[command], daemon=True)
        self._seeding.start()
        return {}

    def _seed(self, command: dict[str, Any]) -> None:
        torrent = Torrent(base64.b64decode(command["torrent"]))
        wanted = set(torrent.files)
        # Others have these layers too, so a host that cannot give them is no failure.
        with suppress(HostError, DamagedError, OSError):
            require_free(self.folder, torrent.size, "")
            self.blobs.mkdir(exist_ok=True)
            for image in self.images:
                if wanted.intersection(image.layers) and not self._stopped.is_set():
                    with engine.saved(image.names[0]) as stream:
                        split_archive(_Stoppable(stream, self._stopped), self.blobs, wanted)
            have = [file.name for file in self.blobs.iterdir() if file.name in wanted]
            if have and not self._stopped.is_set():
                pieces = torrent.pieces_of(have)
                own = {**command, "pieces": pieces, "share": (0, 1)}
                self.swarm = self._swarm(own, complete=False)

    def leave(self, command: dict[str, Any]) -> dict[str, Any]:
        """End the exchange."""
        last: dict[str, Any] = {}
        if self._seeding is not None:
            self._stopped.set()
            self._seeding.join()
        swarm, self.swarm = self.swarm, None
        if swarm is not None:
            last = swarm.status()
            swarm.leave()
        if self._seeding is not None:
            shutil.rmtree(self.blobs, ignore_errors=True)
        return last

    def load(self, command: dict[str, Any]) -> dict[str, Any]:
        """Load the images that the engine lacks, and delete what arrived for that."""
        changes = []
        for image in self.images:
            before = engine.state(image)
            if before != "ok":
                loaded = self._loaded()
                needed = engine.missing_layers([image], loaded)
                self._take_from_engine(needed)
                engine.load(image, self.blobs, needed)
                report = engine.inspect(image.names[0]) or {}
                loaded[report["Id"]] = image.layers
                self._record.write_text(json.dumps(loaded))
                changes.append(f"{image.names[0]} loaded ({before} before)")
        shutil.rmtree(self.blobs, ignore_errors=True)
        return {"changes": changes}

    def _take_from_engine(self, layers: Set[str]) -> None:
        """Get those layers out of the engine that did not arrive because it has them."""
        self.blobs.mkdir(exist_ok=True)
        own = engine.images_with({layer for layer in layers if not (self.blobs / layer).is_file()})
        for identity in sorted(set(own.values())):
            with engine.saved(identity) as stream:
                split_archive(stream, self.blobs, own.keys())


class _Stoppable:
    """A stream that ends with an error once nobody needs it any more."""

    def __init__(self, stream: Any, stopped: threading.Event) -> None:
        self._stream = stream
        self._stopped = stopped

    def read(self, size: int = -1) -> bytes:
        if self._stopped.is_set():
            raise DamagedError("stopped")
        content: bytes = self._stream.read(size)
        return content
