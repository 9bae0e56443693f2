import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocodata import DatasetError, check_dataset
from cocodata.format.manifest import read_manifest
from cocodata.sync.pack import pack_dataset, read_image_metadata
from cocodata.sync.torrent import BLOCK, Torrent, bdecode, bencode, make_torrent

pytestmark = pytest.mark.skipif(
    shutil.which("mksquashfs") is None, reason="mksquashfs is missing (squashfs-tools)"
)

Mount = Callable[[Path], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts images as hosts do."""
    points: list[Path] = []

    def mounted(image: Path) -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "squashfs", "-o", "loop,ro", str(image), str(point)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"loop mounts are not allowed here: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mounted
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


def test_image_contains_the_data_set(generated: Path, tmp_path: Path, mount: Mount) -> None:
    metadata, made = pack_dataset(generated, tmp_path / "packed", name="mini")
    assert made
    assert read_image_metadata(tmp_path / "packed", "mini") == metadata
    image = tmp_path / "packed" / "mini" / metadata.image
    assert hashlib.sha256(image.read_bytes()).hexdigest() == metadata.sha256
    manifest = read_manifest(generated)
    assert manifest is not None
    assert metadata.version == manifest.version
    assert metadata.images == {"train2017": 220, "val2017": 110}

    point = mount(image)
    there = {str(path.relative_to(point)) for path in point.rglob("*") if path.is_file()}
    assert there == {*manifest.files, "manifest.json"}
    for path in manifest.files:
        assert (point / path).read_bytes() == (generated / path).read_bytes()
    # Training checks it and trusts its manifest.
    report = check_dataset(point, ("train2017", "val2017"))
    assert report.problems == []
    assert report.used_manifest
    with pytest.raises(OSError, match="Read-only"):
        (point / "new").write_text("")
    assert (point / "train2017").stat().st_mode & 0o777 == 0o755
    # Files are stored uncompressed, in one run of bytes.
    first = sorted(manifest.files)[5]
    assert (generated / first).read_bytes() in image.read_bytes()


def test_the_same_data_gives_the_same_bytes(generated: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(generated, elsewhere, copy_function=shutil.copy)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    manifest = json.loads((elsewhere / "manifest.json").read_text())
    manifest["verified"]["at"] = "2001-01-01T00:00:00+00:00"
    (elsewhere / "manifest.json").write_text(json.dumps(manifest))
    (elsewhere / "train2017").chmod(0o700)
    first, _ = pack_dataset(generated, tmp_path / "a", name="mini")
    time.sleep(1.1)  # Times in an image are whole seconds.
    second, _ = pack_dataset(elsewhere, tmp_path / "b", name="mini")
    assert first == second
    for name in (first.image, first.torrent, "seal.json"):
        assert (tmp_path / "a" / "mini" / name).read_bytes() == (
            tmp_path / "b" / "mini" / name
        ).read_bytes()
    # Nothing is packed again.
    stat = (tmp_path / "a" / "mini" / first.image).stat()
    assert pack_dataset(generated, tmp_path / "a", name="mini") == (first, False)
    assert (tmp_path / "a" / "mini" / first.image).stat().st_mtime_ns == stat.st_mtime_ns


def test_only_verified_data_is_packed(data: Path, generated: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"not verified.*make coco-verify"):
        pack_dataset(data, tmp_path / "packed")
    shutil.copy(generated / "manifest.json", data)
    image = next((data / "val2017").iterdir())
    content = image.read_bytes()
    image.write_bytes(content[:-3] + b"\0" + content[-2:])
    with pytest.raises(DatasetError, match=f"{image.name}: differs from the manifest"):
        pack_dataset(data, tmp_path / "packed", name="x")
    assert list((tmp_path / "packed" / "x").iterdir()) == []
    image.write_bytes(content)
    with pytest.raises(DatasetError, match="not a valid name for a data set"):
        pack_dataset(data, tmp_path / "packed", name="../x")
    metadata, _ = pack_dataset(data, tmp_path / "packed", name="x")
    os.truncate(tmp_path / "packed" / "x" / metadata.image, 5000)
    with pytest.raises(DatasetError, match=r"5000 bytes, .* when packed"):
        read_image_metadata(tmp_path / "packed", "x")
    assert pack_dataset(data, tmp_path / "packed", name="x") == (metadata, True)


def test_too_little_disk_space_is_reported_before_packing(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DatasetError, match="needed for the image"):
        pack_dataset(generated, tmp_path, name="mini")


SIZES = [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 64 * BLOCK, 64 * BLOCK + 1, 300 * BLOCK + 77]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece_length", [BLOCK, 4 * BLOCK, 64 * BLOCK])
def test_torrents_equal_those_of_libtorrent(size: int, piece_length: int, tmp_path: Path) -> None:
    lt = pytest.importorskip("libtorrent")
    path = tmp_path / "image"
    path.write_bytes(hashlib.shake_128(b"x").digest(size))
    storage = lt.file_storage()
    storage.add_file("image", size)
    creator = lt.create_torrent(storage, piece_length, lt.create_torrent.v2_only)
    creator.set_priv(True)
    lt.set_piece_hashes(creator, str(tmp_path))
    expected = creator.generate()
    found = bdecode(make_torrent(path, piece_length))
    assert found[b"info"] == expected[b"info"]
    assert found[b"piece layers"] == expected[b"piece layers"]
    assert lt.torrent_info(lt.bdecode(make_torrent(path))).files().file_size(0) == size


@pytest.mark.parametrize("size", SIZES)
def test_damaged_pieces_are_found(size: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    content = bytearray(hashlib.shake_128(b"x").digest(size))
    path.write_bytes(content)
    torrent = Torrent(make_torrent(path, 4 * BLOCK))
    assert (torrent.name, torrent.size, torrent.piece_length) == ("image", size, 4 * BLOCK)
    assert torrent.bad_pieces(path, lambda _: None) == []
    content[-1] ^= 1
    content[size // 2] ^= 1
    path.write_bytes(content)
    bad = sorted({(size - 1) // (4 * BLOCK), size // 2 // (4 * BLOCK)})
    assert torrent.bad_pieces(path, lambda _: None) == (bad if size > 1 else [])


trees = st.recursive(
    st.integers() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.binary(), inner),
)


@given(trees)
def test_bencoding_is_reversible(tree: object) -> None:
    assert bdecode(bencode(tree)) == tree
