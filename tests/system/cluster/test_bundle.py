"""Images in an offline bundle, saved and loaded with a real Docker Engine."""

import io
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bundle

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _zstd_is_installed() -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")


@pytest.fixture
def image() -> Iterator[str]:
    """Create a small image with a unique name."""
    name = f"test-bundle/image:{secrets.token_hex(4)}"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        file = tarfile.TarInfo("file")
        file.size = 4096
        tar.addfile(file, io.BytesIO(secrets.token_bytes(4096)))
    load = ["docker", "import", "-", name]
    subprocess.run(load, input=content.getvalue(), check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], capture_output=True, check=False)


def image_id(image: str) -> str:
    command = ["docker", "image", "inspect", "--format={{.Id}}", image]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_images_round_trip_through_a_bundle(
    monkeypatch: pytest.MonkeyPatch, image: str, tmp_path: Path
) -> None:
    before = image_id(image)
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(bundle, "images", lambda: [image])
    bundle.save_images(tmp_path / "images")
    assert len(bundle.write_manifest(tmp_path)) == 1
    subprocess.run(["docker", "rmi", image], check=True, capture_output=True)
    assert image_id(image) == ""

    bundle.load(tmp_path)
    assert image_id(image) == before


def test_a_damaged_bundle_is_rejected(
    monkeypatch: pytest.MonkeyPatch, image: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(bundle, "images", lambda: [image])
    bundle.save_images(tmp_path / "images")
    bundle.write_manifest(tmp_path)
    (file,) = (tmp_path / "images").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(bundle.BundleError, match="damaged"):
        bundle.load(tmp_path)


def test_a_missing_image_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle, "images", lambda: ["test-bundle/none:0"])
    with pytest.raises(bundle.BundleError, match="test-bundle/none:0 could not be saved"):
        bundle.save_images(tmp_path)
    assert list(tmp_path.iterdir()) == []
