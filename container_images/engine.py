"""What a Docker engine has, and loading into it what it lacks.

Sent to hosts: nothing but the standard library of Python 3.10.
"""

import json
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from cocodata.sync.store import HostError
from container_images.archive import ContainerImage, DamagedError, verify_blob, write_archive


def _docker(*arguments: str) -> str:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostError("docker is not installed") from None
    if done.returncode:
        raise HostError(f"docker {' '.join(arguments[:2])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def inspect(name: str) -> dict[str, Any] | None:
    """Return what the engine reports about an image; None if it has none of this name."""
    try:
        found: list[dict[str, Any]] = json.loads(_docker("image", "inspect", name))
    except HostError as error:
        if "no such image" in str(error).lower():
            return None
        raise
    return found[0]


def _layers(report: dict[str, Any]) -> list[str]:
    listed = report["RootFS"].get("Layers") or []
    return [layer.removeprefix("sha256:") for layer in listed]


def matches(report: dict[str, Any] | None, image: ContainerImage) -> bool:
    """Return whether the engine's own report is that of the image: configuration and layers."""
    return report is not None and report["Id"] in image.ids and _layers(report) == image.layers


def state(image: ContainerImage) -> str:
    """Return whether the engine has an image under all its names: ok, missing or different."""
    reports = [inspect(name) for name in image.names]
    if all(matches(report, image) for report in reports):
        return "ok"
    return "missing" if None in reports else "different"


def missing_layers(
    images: list[ContainerImage], loaded: Mapping[str, list[str]] = MappingProxyType({})
) -> set[str]:
    """Return which layers have to be in the archives that this engine loads.

    A layer of Docker's classic store can only be used on top of those that it was stored with, so
    what counts is how many layers from the bottom an image of the engine has in common. The store
    of containerd can use any layer, but does not tell which it has without compression: those of
    images that were loaded by this program.

    Args:
        images: the images that it should have.
        loaded: id -> layers, of images that this program has loaded.
    """
    lacking = [image for image in images if state(image) != "ok"]
    if not lacking:
        return set()
    if "io.containerd.snapshotter" in _docker("info", "--format", "{{json .DriverStatus}}"):
        present = {layer for identity in _images() for layer in loaded.get(identity, ())}
        return {layer for image in lacking for layer in image.layers} - present
    chains = [_layers(report) for report in _images().values()]
    missing: set[str] = set()
    for image in lacking:
        usable = max((_common(image.layers, chain) for chain in chains), default=0)
        missing |= set(image.layers[usable:])
    return missing


def images_with(layers: Collection[str]) -> dict[str, str]:
    """Return which image of this engine has each of these layers, of those that any has.

    These need not be sent: the host takes them out of its engine, to use them in another image.
    """
    found: dict[str, str] = {}
    if not layers:
        return found
    for identity, report in _images().items():
        found |= dict.fromkeys(set(_layers(report)).intersection(layers) - found.keys(), identity)
    return found


def _images() -> dict[str, dict[str, Any]]:
    """Return the engine's report about each of its images, by id."""
    known = sorted(set(_docker("image", "ls", "--quiet", "--no-trunc").split()))
    reports = json.loads(_docker("image", "inspect", *known)) if known else []
    return {report["Id"]: report for report in reports}


def _common(first: list[str], second: list[str]) -> int:
    """Return how many elements are the same from the beginning."""
    for count, (one, other) in enumerate(zip(first, second)):  # noqa: B905
        if one != other:
            return count
    return min(len(first), len(second))


def load(image: ContainerImage, blobs: Path, send: set[str]) -> None:
    """Load an image into the engine, and compare what the engine then reports with it.

    Args:
        image: the image.
        blobs: the folder of layers.
        send: the layers that the engine lacks.

    Raises:
        HostError: a layer is missing or damaged, which is found before anything is loaded; or the
            engine refuses the image, or reports another one afterwards.
    """
    try:
        for layer in send.intersection(image.layers):
            verify_blob(blobs, layer)
    except DamagedError as error:
        raise HostError(str(error)) from None
    with subprocess.Popen(
        ["docker", "load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        try:
            with running.stdin as out:
                write_archive(out, image, blobs, send)
        except BrokenPipeError:
            pass  # docker load says why.
        message = running.stderr.read().decode(errors="replace").strip()
    if running.returncode:
        if state(image) == "ok":
            # containerd's store keeps the names of an image even if a layer of it is missing.
            _docker("image", "rm", "--force", *image.names)
        raise HostError(f"{image.names[0]}: docker load failed: {message}")
    if (found := state(image)) != "ok":
        raise HostError(f"{image.names[0]}: is {found} after docker load")


@contextmanager
def saved(name: str) -> Iterator[IO[bytes]]:
    """Yield the archive of an image as the engine writes it.

    Raises:
        HostError: the engine cannot write it.
    """
    with subprocess.Popen(
        ["docker", "save", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        try:
            yield running.stdout
        except BaseException:
            running.kill()
            raise
        running.stdout.close()
        message = running.stderr.read().decode(errors="replace").strip()
    if running.returncode:
        raise HostError(f"{name}: docker save failed: {message}")
