"""Container images as blobs: split out of `docker save`, put together again for `docker load`.

A layer is an uncompressed tar archive, named by its SHA-256, which the image's configuration lists
(diff_ids). The archive that is built for `docker load` is an OCI layout with Docker's manifest in
it, which both of Docker's image stores read. It holds only the layers that the engine lacks.

Sent to hosts: nothing but the standard library of Python 3.10.
"""

import base64
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

_CHUNK = 1 << 20
_SMALL = (
    4 << 20
)  # Bytes of the largest file of an archive that may be a manifest or a configuration.
_OCI = "application/vnd.oci.image"


class DamagedError(Exception):
    """A blob or an archive is not what it should be; the message says which."""


@dataclass(frozen=True)
class ContainerImage:
    """An image without its layers' content.

    Attributes:
        names: the names that it gets on a host, with their tags.
        config: its configuration, as the bytes whose SHA-256 identifies it.
        sizes: bytes of each layer, as an uncompressed tar archive.
    """

    names: tuple[str, ...]
    config: bytes
    sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of its configuration: the id of the image in Docker's classic store."""
        return hashlib.sha256(self.config).hexdigest()

    @property
    def layers(self) -> list[str]:
        """The SHA-256 of each layer."""
        listed = json.loads(self.config)["rootfs"]["diff_ids"]
        return [layer.removeprefix("sha256:") for layer in listed]

    @property
    def manifest(self) -> bytes:
        """Its manifest, whose SHA-256 is the id of the image in containerd's store."""
        layers = zip(self.layers, self.sizes, strict=True)
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": _descriptor(f"{_OCI}.config.v1+json", self.digest, len(self.config)),
                "layers": [_descriptor(f"{_OCI}.layer.v1.tar", *layer) for layer in layers],
            }
        )

    @property
    def ids(self) -> tuple[str, str]:
        """The ids that an engine may give it."""
        manifest = hashlib.sha256(self.manifest).hexdigest()
        return f"sha256:{self.digest}", f"sha256:{manifest}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        config = base64.b64encode(self.config).decode()
        return {"names": self.names, "config": config, "sizes": self.sizes}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ContainerImage":
        """Return the image that `to_dict` described."""
        config = base64.b64decode(values["config"])
        return cls(tuple(values["names"]), config, tuple(values["sizes"]))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _descriptor(kind: str, digest: str, size: int, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size, **more}


def verify_blob(folder: Path, digest: str) -> None:
    """Compare a blob's content with its name.

    Raises:
        DamagedError: it is missing or different.
    """
    try:
        with (folder / digest).open("rb") as file:
            found = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except FileNotFoundError:
        raise DamagedError(f"{folder / digest}: is missing") from None
    if found.hexdigest() != digest:
        raise DamagedError(f"{folder / digest}: is damaged")


def write_archive(
    out: IO[bytes], image: ContainerImage, blobs: Path, send: Collection[str]
) -> None:
    """Write the archive of an image for `docker load`.

    Args:
        out: where to write it, such as the standard input of `docker load`.
        image: the image.
        blobs: the folder of layers.
        send: the layers to put into it; the engine must have the others.
    """
    manifest = image.manifest
    described = [
        _descriptor(
            f"{_OCI}.manifest.v1+json",
            hashlib.sha256(manifest).hexdigest(),
            len(manifest),
            annotations={
                "io.containerd.image.name": _full_name(name),
                "org.opencontainers.image.ref.name": name.rpartition(":")[2],
            },
        )
        for name in image.names
    ]
    docker_manifest = [
        {
            "Config": f"blobs/sha256/{image.digest}",
            "RepoTags": image.names,
            "Layers": [f"blobs/sha256/{layer}" for layer in image.layers],
        }
    ]
    small = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": described}),
        "manifest.json": _json(docker_manifest),
        f"blobs/sha256/{hashlib.sha256(manifest).hexdigest()}": manifest,
        f"blobs/sha256/{image.digest}": image.config,
    }
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, content in small.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for layer in dict.fromkeys(image.layers):
            if layer in send:
                member = tarfile.TarInfo(f"blobs/sha256/{layer}")
                with (blobs / layer).open("rb") as file:
                    member.size = os.fstat(file.fileno()).st_size
                    tar.addfile(member, file)


def _full_name(name: str) -> str:
    """Return a name as containerd stores it, with the registry that Docker leaves out."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""


def split_archive(
    stream: Readable, folder: Path, wanted: Collection[str] | None = None
) -> dict[str, bytes]:
    """Write the files of an archive from `docker save` into a folder, each named by its SHA-256.

    Args:
        stream: the archive.
        folder: gets the files, layers without their compression. What is there already is kept.
        wanted: only these layers; None for all files.

    Returns:
        Path in the archive -> content, of the files that are small enough to be a manifest or a
        configuration.

    Raises:
        DamagedError: the archive ends too early or is none.
    """
    small = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or (folder / Path(member.name).name).is_file():
                    continue
                if member.size <= _SMALL:
                    content = source.read()
                    small[member.name] = content
                    source = io.BytesIO(content)
                _write_blob(source, Path(member.name).name, folder, wanted)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DamagedError(f"the archive from docker save is damaged ({error})") from None
    return small


def _write_blob(source: IO[bytes], name: str, folder: Path, wanted: Collection[str] | None) -> None:
    first = source.read(_CHUNK)
    # containerd's store keeps layers as they were pulled.
    compressed = first[:2] == b"\x1f\x8b"
    # Newer engines name a file by its SHA-256, so it need not be read to find out.
    if wanted is not None and not compressed and len(name) == 64 and name not in wanted:
        return
    temporary = folder / f".{os.getpid()}.part"
    found = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            chunks = _chunks(first, source)
            for chunk in _decompressed(chunks) if compressed else chunks:
                found.update(chunk)
                file.write(chunk)
        if wanted is None or found.hexdigest() in wanted:
            temporary.replace(folder / found.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(first: bytes, source: IO[bytes]) -> Iterator[bytes]:
    while first:
        yield first
        first = source.read(_CHUNK)


def _decompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of a gzip file, which may have several parts."""
    expand = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        rest = chunk
        while rest:
            yield expand.decompress(rest)
            rest = b""
            if expand.eof:
                rest, expand = expand.unused_data.lstrip(b"\0"), zlib.decompressobj(wbits=31)
