"""The folder of secrets is closed again, whatever its modes were."""

import stat
from pathlib import Path

import pytest

from tools.secrets_folder import protect_secrets


def _modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


def test_all_modes_are_repaired(tmp_path: Path) -> None:
    secrets = tmp_path / ".secrets"
    (secrets / "main/hosts").mkdir(parents=True, mode=0o755)
    for name in ("main/admin_password", "main/hosts/node1.crt"):
        (secrets / name).write_text("x")
        (secrets / name).chmod(0o664)
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o644)
    (secrets / "link").symlink_to(outside)
    assert len(protect_secrets(secrets)) == 5
    modes = _modes(secrets)
    assert modes.pop("link") == 0o644  # what it points to is not the folder's
    assert modes == {
        ".": 0o700,
        "main": 0o700,
        "main/hosts": 0o700,
        "main/admin_password": 0o600,
        "main/hosts/node1.crt": 0o600,
    }
    assert protect_secrets(secrets) == []


def test_a_missing_folder_stays_missing(tmp_path: Path) -> None:
    assert protect_secrets(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_closed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PermissionError):
        protect_secrets(tmp_path)
