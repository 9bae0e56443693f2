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
from container_images.bundle import save_images
from container_images.errors import ImageError
from container_images.export import BlobCache

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
    # Loading it gives it another name too.
    listed = ["docker", "image", "ls", "--quiet", f"--filter=reference={name.partition(':')[0]}"]
    left = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    if left:
        subprocess.run(["docker", "rmi", "--force", *left], capture_output=True, check=False)


def image_id(image: str) -> str:
    command = ["docker", "image", "inspect", "--format={{.Id}}", image]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def save(image: str, folder: Path) -> None:
    (folder / "images").mkdir()
    cache = folder.with_name(f"{folder.name}-cache")
    save_images(BlobCache(cache), [image], folder / "images", print)


def test_images_round_trip_through_a_bundle(image: str, tmp_path: Path) -> None:
    before = image_id(image)
    save(image, tmp_path)
    # The list of images, and one layer.
    assert len(bundle.write_manifest(tmp_path)) == 2
    subprocess.run(["docker", "rmi", image], check=True, capture_output=True)
    assert image_id(image) == ""

    bundle.load(tmp_path)
    assert image_id(image) == before


def test_a_damaged_bundle_is_rejected(image: str, tmp_path: Path) -> None:
    save(image, tmp_path)
    bundle.write_manifest(tmp_path)
    (file,) = (tmp_path / "images").glob("*.zst")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(bundle.BundleError, match="damaged"):
        bundle.load(tmp_path)


def test_a_layer_that_is_not_what_its_name_says_is_refused(image: str, tmp_path: Path) -> None:
    """Even if the list of hashes was changed with it."""
    save(image, tmp_path)
    subprocess.run(["docker", "rmi", image], check=True, capture_output=True)
    (file,) = (tmp_path / "images").glob("*.zst")
    compress = ["zstd", "--quiet", "--force", "-o", str(file)]
    subprocess.run(compress, input=b"another layer", check=True)
    bundle.write_manifest(tmp_path)
    with pytest.raises(ImageError, match="is damaged"):
        bundle.load(tmp_path)
    assert image_id(image) == ""


def test_a_missing_image_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Docker lacks test-bundle/none:0"):
        save("test-bundle/none:0", tmp_path)
    assert list((tmp_path / "images").iterdir()) == []
