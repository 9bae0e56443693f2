"""The offline bundle: all that hosts and this machine need where there is no internet.

`make offline-bundle` gathers it once; on the machine without internet, `python ansible/bundle.py
load BUNDLE` gives the images to its engine, and the inventory names the folder in `offline_bundle`.
Needs apt-get here for the hosts' packages, pip for the wheels and an engine for the images.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
# Started as a script, also without make's PYTHONPATH.
sys.path += [str(ROOT), str(ROOT / "data-prep")]

from cocodata.files import atomic_path, file_digest, write_atomically  # noqa: E402
from tools.versions import read_versions, task_image  # noqa: E402

SERVICES = yaml.safe_load((ROOT / "ansible/group_vars/all/services.yml").read_text())[
    "cluster_services"
]
# What the roles install.
PACKAGES = [
    *(service["package"] for service in SERVICES.values() if "package" in service),
    "ca-certificates",
    "curl",
    "docker.io",
    "nfs-common",
    "nfs-kernel-server",
    "python3-apt",
    "python3-libtorrent",
    "python3-requests",
]
# Packages that give containers access to GPUs, from NVIDIA's own archive.
TOOLKIT = [
    "libnvidia-container-tools",
    "libnvidia-container1",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
]
# Release -> keyring and archives, as lines of sources.list; {m} stands for the mirror.
DEBIAN = "/usr/share/keyrings/debian-archive-keyring.gpg"
UBUNTU = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
RELEASES = {
    "bookworm": (
        DEBIAN,
        ["{m} bookworm main", "{m} bookworm-updates main", "{m}-security bookworm-security main"],
    ),
    **{
        name: (
            UBUNTU,
            [f"{{m}} {name}{part} main universe" for part in ("", "-updates", "-security")],
        )
        for name in ("jammy", "noble")
    },
}
MANIFEST = "bundle.json"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False)


class BundleError(Exception):
    """The bundle cannot be made or used; the message says what to do."""


def _run(*command: str | Path) -> str:
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BundleError(f"{' '.join(arguments[:3])} ... failed: " + "\n".join(lines[-5:]))
    return done.stdout


def images() -> list[str]:
    """Return the task image and the images of the services."""
    versions = read_versions()
    services = [name for name, service in SERVICES.items() if "image" in service]
    return [task_image(), *(versions[f"{name.upper()}_IMAGE"] for name in services)]


def save_images(folder: Path) -> None:
    """Write each image into a compressed archive."""
    for name in images():
        file = folder / (re.sub(r"[^\w.-]+", "_", name) + ".tar.zst")
        console.print(f"image {name}")
        with atomic_path(file) as temporary:
            save = subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE)
            command = ["zstd", "--quiet", "--threads=0", "--force", "-o", str(temporary)]
            packed = subprocess.run(command, stdin=save.stdout, check=False).returncode
            if save.wait() or packed:
                raise BundleError(
                    f"{name} could not be saved: is it built or pulled (docker images)?"
                )


def download_wheels(folder: Path) -> None:
    """Download what the locks name, each held to its hash."""
    for lock in ("requirements-uv.txt", "requirements.lock"):
        console.print(f"wheels of {lock}")
        pip = [str(ROOT / ".uv/bin/python"), "-m", "pip", "download", "--quiet", "--no-deps"]
        _run(*pip, "--require-hashes", "--requirement", ROOT / lock, "--dest", folder)


def own_mirror(release: str, apt: Path = Path("/etc/apt")) -> str:
    """Where this machine's own apt fetches a release from.

    Raises:
        BundleError: It is of another release, so that a mirror must be named.
    """
    for file in sorted([*apt.glob("sources.list"), *apt.glob("sources.list.d/*")]):
        uri = ""
        for line in file.read_text(errors="replace").splitlines():
            one_line = re.match(r"deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)", line)
            if one_line and one_line[2] == release:
                return one_line[1].rstrip("/")
            if named := re.match(r"URIs:\s*(\S+)", line):
                uri = named[1].rstrip("/")
            if (suites := re.match(r"Suites:\s*(.*)", line)) and release in suites[1].split():
                return uri
    raise BundleError(f"this machine's apt has no archive of {release}: name one with --mirror")


def toolkit_repository() -> str:
    """Return where the roles' settings say that NVIDIA's container toolkit comes from."""
    settings = yaml.safe_load((ROOT / "ansible/group_vars/all/settings.yml").read_text())
    return str(settings["nvidia_toolkit_repository"])


def toolkit_source(repository: str, key: Path) -> str:
    """Fetch the key of NVIDIA's archive, or of a mirror of it; return its line of sources.list."""
    url = re.sub(r"/stable/deb/?$", "", repository) + "/gpgkey"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
            key.write_bytes(answer.read())
    except OSError as error:
        raise BundleError(
            f"{url}: {error}. Name a mirror with --toolkit-repository, or leave GPUs out: --no-gpus"
        ) from error
    return f"deb [signed-by={key}] {repository.rstrip('/')}/amd64 /"


def download_packages(release: str, file: Path, mirror: str = "", toolkit: str = "") -> None:
    """Write a package archive for a release: the roles' packages and all that they depend on.

    Args:
        release: The release of the hosts.
        file: The archive to write.
        mirror: A mirror of the release; empty takes this machine's own.
        toolkit: NVIDIA's archive of its container toolkit; empty leaves it out.
    """
    keyring, lines = RELEASES[release]
    mirror = mirror or own_mirror(release)
    if not Path(keyring).exists():
        raise BundleError(
            f"{keyring} is missing: apt install {Path(keyring).stem.split('-arch')[0]}-keyring"
        )
    console.print(f"packages for {release}")
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        apt = Path(folder)
        for part in ("etc", "state/lists/partial", "cache/archives/partial"):
            (apt / part).mkdir(parents=True)
        # As if nothing were installed, so that nothing is left out that a host may lack.
        (apt / "state/status").touch()
        sources = [f"deb [signed-by={keyring}] " + line.format(m=mirror) for line in lines]
        packages = list(PACKAGES)
        if toolkit:
            sources.append(toolkit_source(toolkit, apt / "etc/nvidia.asc"))
            packages += TOOLKIT
        (apt / "etc/sources.list").write_text("\n".join(sources) + "\n")
        (apt / "apt.conf").write_text(
            f'Dir::Etc "{apt}/etc"; Dir::State "{apt}/state"; Dir::Cache "{apt}/cache";\n'
            f'Dir::State::status "{apt}/state/status"; APT::Architecture "amd64";\n'
            'APT::Install-Recommends "false"; APT::Sandbox::User "";\n'
            'Dir::Etc::SourceParts "/dev/null"; APT::Architectures { "amd64"; };\n'
        )
        config = f"--config-file={apt / 'apt.conf'}"
        _run("apt-get", config, "--quiet", "update")
        _run("apt-get", config, "--quiet", "--yes", "--download-only", "install", *packages)
        archives = apt / "cache/archives"
        debs = sorted(archives.glob("*.deb"))
        (archives / "Packages").write_text("\n".join(_stanzas(config, debs)))
        with atomic_path(file) as temporary, tarfile.open(temporary, "w") as tar:
            for deb in (archives / "Packages", *debs):
                tar.add(deb, arcname=deb.name)


def _stanzas(config: str, debs: list[Path]) -> Iterator[str]:
    """Give the archive's own description of each package, with its place in the bundle."""
    files = {}
    for deb in debs:
        name, version, _ = deb.stem.split("_")
        files[name, version.replace("%3a", ":")] = deb.name
    wanted = [f"{name}={version}" for name, version in files]
    for stanza in _run("apt-cache", config, "show", *wanted).strip().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.*)$", stanza, flags=re.M))
        file = files.pop((fields["Package"], fields["Version"]), None)
        if file:
            yield re.sub(r"^Filename: .*$", f"Filename: ./{file}", stanza, flags=re.M) + "\n"
    if files:
        raise BundleError(f"apt has no description of {', '.join(name for name, _ in files)}")


def write_manifest(bundle: Path) -> list[int]:
    """Write the digests of a bundle's files beside them; return the files' sizes in bytes."""
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
        list[str] | None, typer.Option(help="A release of the hosts: bookworm, jammy, noble")
    ] = None,
    mirror: Annotated[str, typer.Option(help="A mirror of the release's archive")] = "",
    gpus: Annotated[bool, typer.Option(help="Gather what hosts with NVIDIA GPUs need")] = True,
    repository: Annotated[
        str, typer.Option("--toolkit-repository", help="A mirror of NVIDIA's archive")
    ] = "",
    packages_only: Annotated[
        bool, typer.Option("--packages-only", help="Leave wheels and images as they are")
    ] = False,
) -> None:
    """Gather packages, wheels (the collections are in them) and images."""
    for part in ("packages", "wheels", "images"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for name in release or ["bookworm"]:
        if name not in RELEASES:
            raise BundleError(f"release {name} is not supported; use one of {', '.join(RELEASES)}")
        toolkit = (repository or toolkit_repository()) if gpus else ""
        download_packages(name, out / f"packages/{name}.tar", mirror, toolkit)
    if not packages_only:
        download_wheels(out / "wheels")
        save_images(out / "images")
    sizes = write_manifest(out)
    console.print(f"[bold]{out}: {len(sizes)} files, {sum(sizes) / 1e9:.2f} GB[/]")


@app.command()
def load(bundle: Annotated[Path, typer.Argument(help="The bundle's folder")]) -> None:
    """Verify a bundle, and give its images to this machine's engine."""
    manifest = bundle / MANIFEST
    if not manifest.is_file():
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}")
    entries = json.loads(manifest.read_text())["files"]
    for name, entry in entries.items():
        file = bundle / name
        if not file.is_file() or file_digest(file) != entry["sha256"]:
            raise BundleError(f"{file} is missing or damaged: copy the bundle again")
    for name in filter(lambda name: name.startswith("images/"), entries):
        console.print(name)
        unpack = subprocess.Popen(
            ["zstd", "--quiet", "--decompress", "--stdout", str(bundle / name)],
            stdout=subprocess.PIPE,
        )
        loaded = subprocess.run(["docker", "load"], stdin=unpack.stdout, check=False)
        if unpack.wait() or loaded.returncode:
            raise BundleError(f"{name} could not be loaded")
    console.print(
        f"[bold]{len(entries)} files are whole; set offline_bundle: {bundle.resolve()}[/]"
    )


if __name__ == "__main__":
    if shutil.which("zstd") is None:
        sys.exit("error: zstd is missing: apt install zstd")
    try:
        app()
    except BundleError as error:
        sys.exit(f"error: {error}")
