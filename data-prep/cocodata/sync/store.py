"""The versions of a data set on a host: images, mounts, and the link that trials use.

Sent to hosts: nothing but the standard library of Python 3.10.
"""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a message from the control machine after which it is considered gone."""

_MIN_FREE = 256 << 20  # Bytes that stay free on the disk.
_UNITS = Path("/etc/systemd/system")


class HostError(Exception):
    """Something is wrong on this host; the message says what it is and how to fix it."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def _mounts() -> Iterator[tuple[str, str, str, str]]:
    """Yield (namespace, device, mount point, propagation) of every mount in every namespace."""
    seen = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            namespace = str((process / "ns" / "mnt").readlink())
            if namespace in seen:
                continue
            lines = (process / "mountinfo").read_text().splitlines()
        except OSError:  # The process has ended.
            continue
        seen.add(namespace)
        for line in lines:
            fields = line.split()
            point = fields[4].encode().decode("unicode_escape")
            yield namespace, fields[2], point, " ".join(fields[6 : fields.index("-")])


def lock_folder(folder: Path, what: str) -> None:
    """Create a folder, and lock out other runs on it until this process ends.

    Args:
        folder: the folder.
        what: the command that locks it; it waits for an interrupted run to end.

    Raises:
        HostError: another run does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + HEARTBEAT_TIMEOUT + 10
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HostError(
                    f"{folder}: another {what} is running here. Wait for it to end"
                ) from None
            time.sleep(0.5)


def require_free(folder: Path, needed: int, remedy: str) -> None:
    """Make sure that a disk has space.

    Raises:
        HostError: fewer than `needed` bytes are free, apart from a reserve.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _MIN_FREE:
        raise HostError(
            f"{folder}: {(needed + _MIN_FREE) / 1e9:.2f} GB are needed, "
            f"{free / 1e9:.2f} GB are free. {remedy}"
        )


class Store:
    """The versions of one data set on this host.

    `folder` holds NAME-VERSION.squashfs, the folder NAME-VERSION that it is mounted on, and partial
    images in incoming/. `link` is the path that trials use: it points to one of the mounts.
    """

    def __init__(self, root: str, name: str, link: str) -> None:
        """Remember the folder and the link; nothing is created yet."""
        self.folder = Path(root) / name
        self.name = name
        self.link = Path(link)
        self.incoming = self.folder / "incoming"

    def image(self, version: str) -> Path:
        """Return where the image of a version is."""
        return self.folder / f"{self.name}-{version[:16]}.squashfs"

    def mount_point(self, version: str) -> Path:
        """Return where a version is mounted."""
        return self.folder / f"{self.name}-{version[:16]}"

    def lock(self) -> None:
        """Lock out other runs of coco-sync, after waiting for an interrupted one to end."""
        lock_folder(self.folder, "coco-sync")

    def status(self, version: str, size: int) -> dict[str, Any]:
        """Return whether this host has a complete version.

        Raises:
            HostError: there is no space for the rest of it, or another file is at the link's path.
        """
        image, part = self.image(version), self.incoming / self.image(version).name
        complete = image.is_file() and image.stat().st_size == size
        present = size if complete else part.stat().st_blocks * 512 if part.is_file() else 0
        if self.link.exists() and not self.link.is_symlink() and not self._is_placeholder():
            raise HostError(
                f"{self.link}: is not a link made by coco-sync. Rename it, for example to "
                f"{self.link}.old"
            )
        if size > present:
            remedy = "Free some space, or put coco_store on another disk"
            require_free(self.folder, size - present, remedy)
        return {"complete": complete}

    def _is_placeholder(self) -> bool:
        """Return whether an empty folder is at the link's path, as a placeholder."""
        return self.link.is_dir() and not self.link.is_symlink() and not any(self.link.iterdir())

    def activate(self, version: str) -> bool:
        """Mount a version next to the others, and switch the link to it atomically."""
        point = self.mount_point(version)
        changed = False
        if not os.path.ismount(point):
            point.mkdir(exist_ok=True)
            self._mount(self.image(version), point)
            changed = True
        found = json.loads((point / "manifest.json").read_text())["version"]
        if found != version:
            raise HostError(f"{point}: contains version {found}, not {version}")
        if not self.link.is_symlink() or self.link.readlink() != point:
            self.link.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.link.with_name(f".{self.link.name}.new")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(point)
            if self._is_placeholder():
                self.link.rmdir()
            temporary.replace(self.link)
            changed = True
        return changed

    def clean(self, version: str) -> dict[str, Any]:
        """Remove all other versions that are not in use, and their partial images."""
        removed, kept = [], {}
        keep = self.image(version).name
        for image in sorted(self.folder.glob(f"{self.name}-*.squashfs")):
            if image.name == keep:
                continue
            point = image.with_suffix("")
            reason = self._used_by(point)
            if reason is None:
                try:
                    self._unmount(point)
                except HostError as error:
                    reason = str(error)
            if reason is not None:
                kept[point.name] = reason
                continue
            if point.is_dir():
                point.rmdir()
            image.unlink()
            removed.append(point.name)
        for partial in self.incoming.glob("*") if self.incoming.is_dir() else ():
            if partial.name != keep:
                partial.unlink()
                removed.append(f"incoming/{partial.name}")
        return {"removed": removed, "kept": kept}

    def _used_by(self, point: Path) -> str | None:
        """Return what uses a mount, such as a trial's container; None if nothing does."""
        if not os.path.ismount(point):
            return None
        number = point.stat().st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        own = str(Path("/proc/self/ns/mnt").readlink())
        for namespace, its_device, where, propagation in _mounts():
            if its_device != device or (namespace == own and where == str(point)):
                continue
            if "master:" in propagation and where.endswith(str(point)):
                continue  # A propagated copy, which disappears with the mount.
            return f"mounted on {where} in {namespace}"
        return None

    def _unit(self, point: Path) -> str | None:
        if not Path("/run/systemd/system").is_dir():
            return None
        return _run("systemd-escape", "--path", "--suffix=mount", str(point))

    def _mount(self, image: Path, point: Path) -> None:
        unit = self._unit(point)
        if unit is None:
            _run("mount", "-t", "squashfs", "-o", "loop,ro,nodev,nosuid", str(image), str(point))
            return
        temporary = _UNITS / f".{unit}"
        temporary.write_text(
            f"[Unit]\nDescription=Data set {point.name}\n\n"
            f"[Mount]\nWhat={image}\nWhere={point}\nType=squashfs\nOptions=loop,ro,nodev,nosuid\n\n"
            "[Install]\nWantedBy=local-fs.target\n"
        )
        temporary.replace(_UNITS / unit)
        _run("systemctl", "daemon-reload")
        _run("systemctl", "enable", "--now", unit)

    def _unmount(self, point: Path) -> None:
        unit = self._unit(point)
        if unit is not None and (_UNITS / unit).exists():
            _run("systemctl", "stop", unit)  # Fails if it is in use; then nothing is changed.
            _run("systemctl", "disable", unit)
            (_UNITS / unit).unlink()
            _run("systemctl", "daemon-reload")
        if os.path.ismount(point):
            _run("umount", str(point))
