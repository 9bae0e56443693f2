"""Keeps .secrets closed: folders with mode 700, files with mode 600, whoever made them."""

import stat
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRETS = ROOT / ".secrets"


def protect_secrets(folder: Path = SECRETS) -> list[Path]:
    """Take away what others may do in the folder; return what was changed.

    Raises:
        PermissionError: Something in it belongs to another user.
    """
    if not folder.is_dir():
        return []
    changed = []
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            continue
        mode = 0o700 if path.is_dir() else 0o600
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
            changed.append(path)
    return changed
