"""The package archive of an offline bundle, as apt sees it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "ansible/commands"))
from bundle_packages import sign_archive  # noqa: E402

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb", "dpkg-scanpackages", "gpg"))),
    reason="apt-get, dpkg-deb, dpkg-scanpackages or gpg is missing",
)


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A signed archive with one package."""
    control = tmp_path / "package/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: probe\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: none\n"
    )
    folder = tmp_path / "archive"
    folder.mkdir()
    assert run("dpkg-deb", "--build", tmp_path / "package", folder, folder=tmp_path).returncode == 0
    index = run("dpkg-scanpackages", "--multiversion", ".", folder=folder)
    assert "Package: probe" in index.stdout, index.stderr
    (folder / "Packages").write_text(index.stdout)
    sign_archive(folder, "bookworm")
    return folder


@pytest.fixture
def download(archive: Path, tmp_path: Path) -> Callable[[], str]:
    """Updates apt from the archive and downloads its package; returns the errors."""
    apt = tmp_path / "apt"
    for part in ("etc", "state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "state/status").touch()
    (apt / "etc/sources.list").write_text(
        f"deb [signed-by={archive}/archive.asc] file:{archive} ./\n"
    )
    options = [f"-oDir::Etc={apt}/etc", f"-oDir::State={apt}/state", f"-oDir::Cache={apt}/cache"]
    options += [f"-oDir::State::status={apt}/state/status", "-oDir::Etc::SourceParts=/dev/null"]
    options += ["-oAPT::Sandbox::User=", "-oAPT::Update::Error-Mode=any"]

    def work() -> str:
        update = run("apt-get", *options, "--quiet", "update", folder=tmp_path)
        if update.returncode:
            return update.stderr
        done = run("apt-get", *options, "--quiet", "download", "probe", folder=tmp_path)
        return done.stderr if done.returncode else ""

    return work


def test_apt_accepts_the_archive(download: Callable[[], str], tmp_path: Path) -> None:
    assert download() == ""
    assert (tmp_path / "probe_1_all.deb").is_file()


def test_apt_refuses_another_index(archive: Path, download: Callable[[], str]) -> None:
    index = archive / "Packages"
    index.write_text(index.read_text().replace("Version: 1", "Version: 2"))
    assert "File has unexpected size" in download() or "Hash Sum mismatch" in download()


def test_apt_refuses_another_package(archive: Path, download: Callable[[], str]) -> None:
    (package,) = archive.glob("*.deb")
    package.write_bytes(package.read_bytes()[:-1] + b"\0")
    assert "Hash Sum mismatch" in download() or "unexpected size" in download()


def test_apt_refuses_the_signature_of_another_key(
    archive: Path, download: Callable[[], str]
) -> None:
    key = (archive / "archive.asc").read_bytes()
    sign_archive(archive, "bookworm")
    (archive / "archive.asc").write_bytes(key)
    assert "NO_PUBKEY" in download()


def test_an_archive_without_a_signature_is_refused(
    archive: Path, download: Callable[[], str]
) -> None:
    (archive / "InRelease").unlink()
    assert "does not have a Release file" in download()


def test_the_private_key_is_not_kept(archive: Path) -> None:
    names = {file.name for file in archive.iterdir()}
    assert names == {"Packages", "InRelease", "archive.asc", "probe_1_all.deb"}
    assert "PRIVATE" not in (archive / "archive.asc").read_text()
