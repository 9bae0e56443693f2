"""Images from this machine's engine to another one, layer by layer."""

import asyncio
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cocodata.sync.exchange import SyncResult
from cocodata.sync.hosts import Host
from cocodata.sync.store import HostError
from container_images import engine
from container_images.archive import ContainerImage
from container_images.errors import ImageError
from container_images.export import BlobCache
from container_images.send import SendOptions, SendRun

pytestmark = pytest.mark.cluster

Build = Callable[..., str]


@pytest.fixture
def cache(cache_folder: Path) -> BlobCache:
    return BlobCache(cache_folder)


def this_host(name: str, *command: str) -> Host:
    """Return a host on this machine, with a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Host(name, "127.0.0.1", (*command, "/usr/bin/python3"), listen="127.0.0.1", port=port)


class Target:
    """A host whose engine is the other one."""

    def __init__(self, address: str, cache: BlobCache, folder: Path) -> None:
        self.address = address
        self.folder = folder / "host"
        self.cache = cache

    def docker(self, *arguments: str) -> str:
        command = ["docker", "--host", self.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def run(self, *images: ContainerImage, check: bool = False) -> tuple[SyncResult, SendRun]:
        host = this_host("other", "env", f"DOCKER_HOST={self.address}")
        run = SendRun(
            self.cache, {"other": images}, [host], SendOptions(str(self.folder)), lambda *_: None
        )
        return asyncio.run(run.check() if check else run.send()), run


@pytest.fixture
def target(other_engine: str, cache: BlobCache, tmp_path: Path) -> Target:
    return Target(other_engine, cache, tmp_path)


def test_only_the_layers_that_a_host_lacks_are_sent(
    build: Build, cache: BlobCache, target: Target
) -> None:
    base = build("base")
    old, new = (cache.image(build(label, base)) for label in ("old", "new"))
    sizes = dict(zip(old.layers + new.layers, old.sizes + new.sizes, strict=True))

    first, run = target.run(old)
    assert first.failed == [], first.hosts
    assert run.states == {"other": {old.names[0]: "missing"}}
    assert first.hosts["other"].changes == [f"{old.names[0]} loaded (missing before)"]
    assert sum(old.sizes) <= first.sent < 1.1 * sum(old.sizes)

    second, _ = target.run(old, new)
    assert second.failed == [], second.hosts
    assert sizes[new.layers[1]] <= second.sent < 1.1 * sizes[new.layers[1]]

    third, run = target.run(old, new)
    assert (third.changed, third.sent) == (False, 0)
    assert set(run.states["other"].values()) == {"ok"}
    assert not (target.folder / "blobs").exists()
    for image in (old, new):
        for name in image.names:
            report = target.docker("image", "inspect", "--format={{.Id}}", name)
            assert report in image.ids


def test_a_layer_above_a_changed_one_is_not_sent_again(
    build: Build, cache: BlobCache, target: Target
) -> None:
    """As with the task image, whose upper layers stay the same when a lower one changes."""
    addition = build("addition")
    first, second = (
        cache.image(build("both", build(label), copied=addition)) for label in ("one", "two")
    )
    assert first.layers[1:] == second.layers[1:]
    assert first.layers[0] != second.layers[0]
    assert target.run(first)[0].failed == []

    result, _ = target.run(first, second)
    assert result.failed == [], result.hosts
    assert result.hosts["other"].changes == [f"{second.names[0]} loaded (missing before)"]
    assert second.sizes[0] <= result.sent < 1.1 * second.sizes[0]
    assert not (target.folder / "blobs").exists()


def test_an_overwritten_tag_is_repaired(build: Build, cache: BlobCache, target: Target) -> None:
    image, other = cache.image(build("one")), cache.image(build("two"))
    assert target.run(image, other)[0].failed == []
    # Both stores keep an image that has a name.
    target.docker("tag", image.names[0], "test-transfer/kept:1")
    target.docker("tag", other.names[0], image.names[0])
    target.docker("tag", other.names[0], image.names[1])

    found, run = target.run(image, other, check=True)
    assert run.states["other"] == {image.names[0]: "different", other.names[0]: "ok"}
    assert not found.changed
    repaired, _ = target.run(image, other)
    assert repaired.hosts["other"].changes == [f"{image.names[0]} loaded (different before)"]
    assert repaired.sent == 0
    assert set(target.run(image, other, check=True)[1].states["other"].values()) == {"ok"}


def test_an_engine_that_lost_its_images_gets_them_again(
    build: Build, cache: BlobCache, target: Target
) -> None:
    image = cache.image(build("lost"))
    assert target.run(image)[0].failed == []
    target.docker("rmi", "--force", *image.names)
    again, _ = target.run(image)
    assert again.hosts["other"].changes == [f"{image.names[0]} loaded (missing before)"]


def test_a_host_that_is_added_later_gets_layers_from_its_peers(
    build: Build, cache: BlobCache, target: Target, tmp_path: Path
) -> None:
    """The control machine sends next to nothing; the peer takes the layers out of its engine."""
    image = cache.image(build("later", build("first")))
    subprocess.run(["docker", "tag", *image.names], check=True)
    hosts = [this_host("peer"), this_host("new", "env", f"DOCKER_HOST={target.address}")]
    folder = tmp_path / "layers"
    # On one machine the hosts need folders of their own.
    inside = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs none "$0" && exec "$@"',
        str(folder),
    )
    folder.mkdir()
    hosts = [replace(host, command=(*inside, *host.command)) for host in hosts]
    run = SendRun(
        cache,
        dict.fromkeys(("peer", "new"), (image,)),
        hosts,
        SendOptions(str(folder)),
        lambda *_: None,
    )
    source = run._exchange._source
    request = source.request

    async def slowly(name: str, **arguments: Any) -> dict[str, Any]:
        return await request(name, **{**arguments, "limit": 1000})

    source.request = slowly  # type: ignore[method-assign]
    result = asyncio.run(run.send())
    assert result.failed == [], result.hosts
    assert run.states == {"peer": {image.names[0]: "ok"}, "new": {image.names[0]: "missing"}}
    assert result.hosts["new"].changes == [f"{image.names[0]} loaded (missing before)"]
    assert result.sent < sum(image.sizes) / 4


def test_a_layer_that_is_missing_or_damaged_is_refused_before_loading(
    build: Build,
    cache: BlobCache,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = cache.image(build("whole", build("bottom")))
    monkeypatch.setenv("DOCKER_HOST", target.address)
    top = cache.blobs / image.layers[1]
    content = bytearray(top.read_bytes())
    content[1 << 20] ^= 1
    top.unlink()
    with pytest.raises(HostError, match=f"{image.layers[1]}: is missing"):
        engine.load(image, cache.blobs, set(image.layers))
    top.write_bytes(content)
    with pytest.raises(HostError, match=f"{image.layers[1]}: is damaged"):
        engine.load(image, cache.blobs, set(image.layers))
    # An archive without a layer that the engine lacks.
    with pytest.raises(HostError, match="docker load failed"):
        engine.load(image, cache.blobs, {image.layers[0]})
    assert engine.state(image) == "missing"


def test_a_damaged_layer_on_this_machine_is_exported_again(
    build: Build, cache: BlobCache, target: Target
) -> None:
    image = cache.image(build("damaged"))
    blob = cache.blobs / image.layers[0]
    blob.write_bytes(bytes(blob.stat().st_size))
    assert target.run(image)[0].failed == []


def test_an_image_is_exported_once_and_its_layers_go_with_it(
    build: Build, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = build("once")
    image = cache.image(name)
    with monkeypatch.context() as without:
        without.setattr(engine, "saved", None)
        assert cache.image(name) == image
    assert {file.name for file in cache.blobs.iterdir()} == set(image.layers)
    subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True)
    cache.prune()
    assert list(cache.blobs.iterdir()) == []
    with pytest.raises(ImageError, match=f"Docker lacks {name}"):
        cache.image(name)
