"""Package archives for hosts without internet: what the roles install, and all it depends on."""

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "ansible/group_vars/all"
SERVICES = yaml.safe_load((SETTINGS / "services.yml").read_text())["cluster_services"]
# What the roles install.
PACKAGES = [
    *(service["package"] for service in SERVICES.values() if "package" in service),
    "ca-certificates",
    "curl",
    "docker.io",
    "nfs-common",
    "nfs-kernel-server",
    "python3-apt",
    "python3-debian",
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


class BundleError(Exception):
    """The bundle cannot be made or used; the message says what to do."""


def run(*command: str | Path) -> str:
    """Run a command and return what it prints.

    Raises:
        BundleError: It failed.
    """
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BundleError(f"{' '.join(arguments[:3])} ... failed: " + "\n".join(lines[-5:]))
    return done.stdout


def own_mirror(release: str, apt: Path = Path("/etc/apt")) -> str:
    """Where this machine's own apt downloads a release from.

    Raises:
        BundleError: It is configured for other releases only, so that a mirror must be given.
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
    raise BundleError(f"this machine's apt has no archive of {release}: give one with --mirror")


def toolkit_repository() -> str:
    """Return the repository of NVIDIA's container toolkit from the cluster settings."""
    settings = yaml.safe_load((SETTINGS / "settings.yml").read_text())
    return str(settings["nvidia_toolkit_repository"])


def toolkit_source(repository: str, key: Path) -> str:
    """Download the key of NVIDIA's archive or its mirror; return a line for sources.list."""
    url = re.sub(r"/stable/deb/?$", "", repository) + "/gpgkey"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
            key.write_bytes(answer.read())
    except OSError as error:
        raise BundleError(
            f"{url}: {error}. Give a mirror with --toolkit-repository, or leave GPUs out: --no-gpus"
        ) from error
    return f"deb [signed-by={key}] {repository.rstrip('/')}/amd64 /"


def download_packages(release: str, file: Path, mirror: str = "", toolkit: str = "") -> None:
    """Write a package archive for a release: the roles' packages and all their dependencies.

    Args:
        release: The release of the hosts.
        file: The archive to write.
        mirror: A mirror of the release; empty for the one that this machine uses.
        toolkit: NVIDIA's archive of its container toolkit; empty to leave it out.
    """
    keyring, lines = RELEASES[release]
    mirror = mirror or own_mirror(release)
    if not Path(keyring).exists():
        raise BundleError(
            f"{keyring} is missing: apt install {Path(keyring).stem.split('-arch')[0]}-keyring"
        )
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        apt = Path(folder)
        for part in ("etc", "state/lists/partial", "cache/archives/partial"):
            (apt / part).mkdir(parents=True)
        # An empty status file: nothing is installed, so apt downloads every dependency.
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
        run("apt-get", config, "--quiet", "update")
        run("apt-get", config, "--quiet", "--yes", "--download-only", "install", *packages)
        archives = apt / "cache/archives"
        debs = sorted(archives.glob("*.deb"))
        (archives / "Packages").write_text("\n".join(_stanzas(config, debs)))
        signed = sign_archive(archives, release)
        with tarfile.open(file, "w") as tar:
            for member in (*signed, *debs):
                tar.add(member, arcname=member.name)


def sign_archive(folder: Path, release: str) -> tuple[Path, Path, Path]:
    """Sign the index of an archive, so that apt accepts these packages and no others.

    The key is made for this archive. Its private half is deleted, so that nothing can be signed
    with it later.

    Args:
        folder: A folder with the index, Packages.
        release: The archive's name.

    Returns:
        The index, the signed file with its hash (InRelease), and the public key (archive.asc).

    Raises:
        BundleError: gpg is missing or fails.
    """
    if shutil.which("gpg") is None:
        raise BundleError("gpg is missing: apt install gpg gpg-agent")
    index, signed, key = (folder / name for name in ("Packages", "InRelease", "archive.asc"))
    content = index.read_bytes()
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:  # A short path: it holds a socket.
        gpg = ("gpg", "--homedir", home, "--batch", "--yes", "--quiet")
        owner = f"Offline bundle of {release}"
        try:
            run(*gpg, "--passphrase", "", "--quick-gen-key", owner, "rsa3072", "sign", "never")
            text = Path(home, "Release")
            text.write_text(
                f"Origin: {owner}\nSuite: {release}\nCodename: {release}\nDate: {formatdate()}\n"
                f"SHA256:\n {hashlib.sha256(content).hexdigest()} {len(content)} {index.name}\n"
            )
            run(*gpg, "--digest-algo", "SHA512", "--clearsign", "--output", signed, text)
            run(*gpg, "--armor", "--export", "--output", key)
        finally:
            subprocess.run(
                ["gpgconf", "--homedir", home, "--kill", "all"], capture_output=True, check=False
            )
    return index, signed, key


def _stanzas(config: str, debs: list[Path]) -> Iterator[str]:
    """Yield the archive's entry for each package, with the path in the bundle."""
    files = {}
    for deb in debs:
        name, version, _ = deb.stem.split("_")
        files[name, version.replace("%3a", ":")] = deb.name
    wanted = [f"{name}={version}" for name, version in files]
    for stanza in run("apt-cache", config, "show", *wanted).strip().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.*)$", stanza, flags=re.M))
        file = files.pop((fields["Package"], fields["Version"]), None)
        if file:
            yield re.sub(r"^Filename: .*$", f"Filename: ./{file}", stanza, flags=re.M) + "\n"
    if files:
        raise BundleError(f"apt has no description of {', '.join(name for name, _ in files)}")
