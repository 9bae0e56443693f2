"""The offline bundle: everything that hosts and this machine need where there is no internet.

`make offline-bundle` makes it. On the machine without internet, `python ansible/commands/bundle.py
load BUNDLE` loads its images into Docker, and the setting `offline_bundle` names the folder.
Making it needs apt-get for the hosts' packages, pip for the wheels and Docker for the images.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
# Started as a script, also without make's PYTHONPATH.
sys.path += [str(ROOT), str(ROOT / "data-prep")]

from bundle_packages import (  # noqa: E402
    RELEASES,
    SERVICES,
    BundleError,
    download_packages,
    run,
    toolkit_repository,
)
from cocodata.files import atomic_path, file_digest, write_atomically  # noqa: E402
from container_images.bundle import load_images, save_images  # noqa: E402
from container_images.errors import ImageError  # noqa: E402
from container_images.export import BlobCache  # noqa: E402
from tools.versions import read_versions, task_image  # noqa: E402

MANIFEST = "bundle.json"
# Where the role image keeps layers too.
CACHE = ROOT / ".cache/container-images"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False)


def images() -> list[str]:
    """Return the task image and the images of the services."""
    versions = read_versions()
    services = [name for name, service in SERVICES.items() if "image" in service]
    return [task_image(), *(versions[f"{name.upper()}_IMAGE"] for name in services)]


def require_zstd() -> None:
    """Stop before any work if images cannot be compressed or unpacked."""
    if shutil.which("zstd") is None:
        raise BundleError("zstd is missing: apt install zstd")


def download_wheels(folder: Path) -> None:
    """Download the wheels in the lock files, checked by their hashes."""
    for lock in ("requirements-uv.txt", "requirements.lock"):
        console.print(f"wheels of {lock}")
        pip = [str(ROOT / ".uv/bin/python"), "-m", "pip", "download", "--quiet", "--no-deps"]
        run(*pip, "--require-hashes", "--requirement", ROOT / lock, "--dest", folder)


def write_manifest(bundle: Path) -> list[int]:
    """Write the digests of a bundle's files next to them; return the files' sizes in bytes."""
    files = sorted(
        path
        for path in bundle.rglob("*")
        if path.is_file() and path.name[0] != "." and path.name != MANIFEST
    )
    sizes = [path.stat().st_size for path in files]
    entries = {
        str(path.relative_to(bundle)): {"size": size, "sha256": file_digest(path)}
        for path, size in zip(files, sizes, strict=True)
    }
    write_atomically(bundle / MANIFEST, json.dumps({"files": entries}, indent=1))
    return sizes


@app.command()
def make(
    *,
    out: Annotated[Path, typer.Option(help="The bundle's folder")] = Path("offline-bundle"),
    release: Annotated[
        list[str] | None,
        typer.Option(
            help="The hosts' release: bookworm (default), jammy or noble; may be repeated"
        ),
    ] = None,
    mirror: Annotated[
        str,
        typer.Option(
            help="A mirror of the release; needed if it is not this machine's own release"
        ),
    ] = "",
    gpus: Annotated[
        bool, typer.Option(help="Include NVIDIA's container toolkit, for hosts with GPUs")
    ] = True,
    repository: Annotated[
        str, typer.Option("--toolkit-repository", help="A mirror of NVIDIA's archive")
    ] = "",
    packages_only: Annotated[
        bool, typer.Option("--packages-only", help="Keep the wheels and images that are there")
    ] = False,
) -> None:
    """Collect packages, wheels (which contain the Ansible collections) and images."""
    if not packages_only:
        require_zstd()
    for part in ("packages", "wheels", "images"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for name in release or ["bookworm"]:
        if name not in RELEASES:
            raise BundleError(f"release {name} is not supported; use one of {', '.join(RELEASES)}")
        toolkit = (repository or toolkit_repository()) if gpus else ""
        console.print(f"packages for {name}")
        with atomic_path(out / f"packages/{name}.tar") as file:
            download_packages(name, file, mirror, toolkit)
    if not packages_only:
        download_wheels(out / "wheels")
        save_images(BlobCache(CACHE), images(), out / "images", console.print)
    sizes = write_manifest(out)
    console.print(f"[bold]{out}: {len(sizes)} files, {sum(sizes) / 1e9:.2f} GB[/]")


@app.command()
def load(bundle: Annotated[Path, typer.Argument(help="The bundle's folder")]) -> None:
    """Verify a bundle, and load its images into this machine's Docker."""
    require_zstd()
    manifest = bundle / MANIFEST
    if not manifest.is_file():
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}")
    entries = json.loads(manifest.read_text())["files"]
    for name, entry in entries.items():
        file = bundle / name
        if not file.is_file() or file_digest(file) != entry["sha256"]:
            raise BundleError(f"{file} is missing or damaged: copy the bundle again")
    load_images(bundle / "images", console.print)
    console.print(
        f"[bold]{len(entries)} files are intact; set offline_bundle: {bundle.resolve()}[/]"
    )


if __name__ == "__main__":
    try:
        app()
    except (BundleError, ImageError) as error:
        sys.exit(f"error: {error}")
