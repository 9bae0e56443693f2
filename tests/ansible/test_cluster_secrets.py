"""A cluster's secrets in one encrypted file, and back."""

import io
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import cluster_secrets

PHRASE = "correct horse battery"
FILES = {
    "main/admin_password": b"of the administrator",
    "main/ca.key": b"key of the authority",
    "main/hosts/node1.key": b"key of node1",
    "clusters/main.yaml": b"master: https://10.0.0.1:8443\ncertificate: /elsewhere/main/ca.crt\n",
    "clusters/main.versions": b"{/data/coco: abc}\n",
}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of secrets with the cluster `main`, and another one."""
    folder = tmp_path / ".secrets"
    _write(folder, FILES | {"other/admin_password": b"of others", "clusters/other.yaml": b"{}"})
    monkeypatch.setattr(cluster_secrets, "SECRETS", folder)
    return folder


@pytest.fixture
def phrase_file(tmp_path: Path) -> Path:
    file = tmp_path / "phrase"
    file.write_text(PHRASE + "\n")
    return file


def _run(*arguments: object) -> str:
    """Run the command; return the message of its error, or nothing."""
    result = CliRunner().invoke(cluster_secrets.app, [str(argument) for argument in arguments])
    if isinstance(result.exception, cluster_secrets.CommandError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return ""


@pytest.fixture
def saved(secrets: Path, phrase_file: Path, tmp_path: Path) -> Path:
    out = tmp_path / "main.age"
    assert _run("export", out, "--passphrase-file", phrase_file) == ""
    return out


def test_the_secrets_reach_another_machine(
    secrets: Path, saved: Path, phrase_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    there = tmp_path / "another machine/.secrets"
    monkeypatch.setattr(cluster_secrets, "SECRETS", there)
    assert _run("import", saved, "--passphrase-file", phrase_file) == ""
    found = {
        str(path.relative_to(there)): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file()
    }
    connection = yaml.safe_load(found.pop("clusters/main.yaml"))
    assert found == {name: data for name, data in FILES.items() if name != "clusters/main.yaml"}
    # The authority is where it is on that machine.
    assert connection["certificate"] == str(there / "main/ca.crt")
    assert connection["master"] == "https://10.0.0.1:8443"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (there, *there.rglob("*"))}
    assert modes == {0o700, 0o600}
    # Once more changes nothing.
    before = (there / "main").stat().st_ino
    assert _run("import", saved, "--passphrase-file", phrase_file) == ""
    assert (there / "main").stat().st_ino == before


def test_nothing_is_readable_in_the_file(saved: Path) -> None:
    content = saved.read_bytes()
    assert content.startswith(b"age-encryption.org/v1\n-> scrypt ")
    for name, secret in FILES.items():
        assert secret not in content
        assert name.encode() not in content


def test_the_program_age_reads_it(saved: Path, tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    archive = tmp_path / "archive.tar"
    command = ["age", "--decrypt", "--output", str(archive), str(saved)]
    terminal = _on_terminal(command, f"{PHRASE}\n")
    assert archive.exists(), terminal
    listed = subprocess.check_output(["tar", "--list", "--file", archive], text=True)
    assert sorted(listed.split()) == sorted(FILES)


def test_different_secrets_stay_unless_forced(
    secrets: Path, saved: Path, phrase_file: Path
) -> None:
    (secrets / "main/admin_password").write_bytes(b"a new one")
    (secrets / "main/added").write_bytes(b"another")
    error = _run("import", saved, "--passphrase-file", phrase_file)
    assert "has different secrets" in error
    assert "FORCE=yes" in error
    assert (secrets / "main/admin_password").read_bytes() == b"a new one"
    assert _run("import", saved, "--passphrase-file", phrase_file, "--force") == ""
    assert (secrets / "main/admin_password").read_bytes() == FILES["main/admin_password"]
    assert not (secrets / "main/added").exists()
    # Nothing is left behind, and other clusters are as they were.
    assert sorted(path.name for path in secrets.iterdir()) == ["clusters", "main", "other"]
    assert (secrets / "other/admin_password").read_bytes() == b"of others"


def test_a_failure_leaves_the_old_secrets(
    secrets: Path, saved: Path, phrase_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "main/admin_password").write_bytes(b"a new one")
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.parent.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    result = CliRunner().invoke(
        cluster_secrets.app,
        ["import", str(saved), "--force", "--passphrase-file", str(phrase_file)],
    )
    assert isinstance(result.exception, OSError)
    assert (secrets / "main/admin_password").read_bytes() == b"a new one"
    assert sorted(path.name for path in secrets.iterdir()) == ["clusters", "main", "other"]


def test_what_cannot_be_read_is_refused(secrets: Path, saved: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("incorrect horse")
    right = tmp_path / "phrase"
    content = saved.read_bytes()
    (secrets / "main/ca.key").unlink()
    for damaged in (content[:-1], content[: len(content) // 2], content[:-1] + b"x"):
        saved.write_bytes(damaged)
        error = _run("import", saved, "--passphrase-file", right, "--force")
        assert "cannot be decrypted: the passphrase is wrong, or the file is incomplete" in error
    saved.write_bytes(content)
    error = _run("import", saved, "--passphrase-file", wrong, "--force")
    assert "the passphrase is wrong" in error
    assert "\n" not in error
    # A file that would keep this machine busy for hours.
    saved.write_bytes(re.sub(rb"(scrypt \S+) \d+", rb"\1 30", content))
    assert "too slow" in _run("import", saved, "--passphrase-file", right)
    saved.write_bytes(b"something else")
    error = _run("import", saved, "--passphrase-file", right)
    assert "not a file that make cluster-secrets-export wrote" in error
    assert not (secrets / "main/ca.key").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"main/../../escaped": b"x"},
        {"/main/absolute": b"x"},
        {"main/a": b"x", "other/b": b"x"},
        {"alone": b"x"},
        {"clusters/..": b"x"},
        {},
    ],
)
def test_an_archive_of_another_form_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(cluster_secrets.CommandError, match="not contain the secrets of one cl"):
        cluster_secrets.unpack(cluster_secrets.pack(files), Path("main.age"))


def test_only_files_are_accepted() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        link = tarfile.TarInfo("main/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    for content in (archive.getvalue(), b"no archive"):
        with pytest.raises(cluster_secrets.CommandError, match="an archive of secrets"):
            cluster_secrets.unpack(content, Path("main.age"))


def test_an_export_needs_secrets_and_a_good_passphrase(
    secrets: Path, saved: Path, phrase_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.age"
    assert "CLUSTER=" in _run("export", out, "--cluster", "none")
    assert "exists already" in _run("export", saved, "--passphrase-file", phrase_file)
    assert "no folder" in _run("export", tmp_path / "none/a", "--passphrase-file", phrase_file)
    phrase_file.write_text("short\n")
    assert "shorter than 12" in _run("export", out, "--passphrase-file", phrase_file)
    missing = _run("export", out, "--passphrase-file", tmp_path / "none")
    assert "No such file" in missing
    # The test runner has no terminal.
    assert "PASSPHRASE_FILE=" in _run("export", out)
    assert not out.exists()


def _on_terminal(command: list[str], typed: str) -> str:
    """Run a command on a terminal of its own; return what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    shown = b""
    for line in typed.splitlines(keepends=True):
        while not shown.rstrip().endswith(b":"):
            shown += os.read(terminal, 1000)
        time.sleep(0.3)  # Until it has turned off the echo.
        os.write(terminal, line.encode())
        shown += os.read(terminal, 1000)
    try:
        while part := os.read(terminal, 1000):
            shown += part
    except OSError:  # The end, on Linux.
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode()


@pytest.mark.parametrize(("second", "written"), [(PHRASE, True), ("another", False)])
def test_the_passphrase_is_asked_for_twice_and_not_shown(
    secrets: Path, tmp_path: Path, second: str, written: bool
) -> None:
    out = tmp_path / "typed.age"
    program = (
        f"import pathlib, sys; sys.path[:0] = {sys.path}; import cluster_secrets; "
        "cluster_secrets.SECRETS = pathlib.Path(sys.argv.pop(1)); cluster_secrets.main()"
    )
    command = [sys.executable, "-c", program, str(secrets), "export", str(out)]
    shown = _on_terminal(command, f"{PHRASE}\n{second}\n")
    assert out.exists() == written, shown
    assert PHRASE not in shown
    assert ("the passphrases differ" in shown) == (not written)
    if written:
        archive = cluster_secrets.decrypt(out.read_bytes(), PHRASE, out)
        assert cluster_secrets.unpack(archive, out)[0] == "main"
