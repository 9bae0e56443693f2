import hashlib
from pathlib import Path

import pytest

from cocodata.files import atomic_folder, atomic_path, file_digest, write_atomically


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "index.json"
    write_atomically(target, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old")
    secret.chmod(0o644)
    write_atomically(secret, b"new", mode=0o600)
    assert secret.read_bytes() == b"new"
    assert secret.stat().st_mode & 0o777 == 0o600


def test_interrupted_block_leaves_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "plot.svg"
    target.write_text("old")

    def interrupted_write() -> None:
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".svg"
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report"
    with atomic_folder(target) as temporary:
        (temporary / "first").touch()

    def failing_write() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "second").touch()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing_write()
    assert [path.name for path in target.iterdir()] == ["first"]
    with atomic_folder(target) as temporary:
        (temporary / "third").touch()
    assert [path.name for path in target.iterdir()] == ["third"]
    assert list(tmp_path.iterdir()) == [target]


def test_file_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert file_digest(path) == hashlib.sha256(b"content").hexdigest()
    assert file_digest(path, "md5") == hashlib.md5(b"content").hexdigest()
