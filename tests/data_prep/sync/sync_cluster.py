"""Hosts with real SSH servers, which are namespaces of this machine, to copy data sets to."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.network_lab import DATA, STORE, Lab, LabHost, why_unavailable
from cocodata.sync.pack import ImageMetadata

ROOT = Path(__file__).resolve().parents[3]
LINK = f"{DATA}/mini"


def reason_to_skip() -> str | None:
    """Return why hosts cannot be simulated here, or None."""
    if shutil.which("mksquashfs") is None:
        return "mksquashfs is missing (squashfs-tools)"
    if not Path("/usr/sbin/sshd").exists():
        return "sshd is missing (openssh-server)"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import libtorrent"], capture_output=True, check=False
    )
    if done.returncode:
        return "the system's python3 has no libtorrent (python3-libtorrent)"
    if importlib.util.find_spec("libtorrent") is None:
        return "this Python has no libtorrent"
    return why_unavailable()


@dataclass
class Packed:
    """A packed version: its folder, its metadata, and the data set that it was made from."""

    folder: Path
    metadata: ImageMetadata
    data: Path

    @property
    def image(self) -> bytes:
        return (self.folder / "mini" / self.metadata.image).read_bytes()


class Cluster:
    """A lab with the command line at its control machine."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.control, *self.hosts = lab.hosts
        self.inventory = lab.folder / "hosts.json"
        self.entries: list[dict[str, Any]] = [
            {
                "name": host.name,
                "address": host.address,
                "user": "root",
                "key": str(lab.key),
                "arguments": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            }
            for host in self.hosts
        ]

    def start(self, packed: Packed, *options: str) -> subprocess.Popen[str]:
        self.inventory.write_text(json.dumps(self.entries))
        self.result = self.lab.folder / "result.json"
        self.result.unlink(missing_ok=True)
        command = [*self.control.enter, sys.executable, "-m", "cocodata", "sync", "mini"]
        command += ["--packed", str(packed.folder), "--hosts", str(self.inventory)]
        command += ["--store", STORE, "--link", LINK, "--json", str(self.result), *options]
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT / "data-prep"), "COLUMNS": "300"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sync(self, packed: Packed, *options: str) -> tuple[int, str, dict[str, Any]]:
        running = self.start(packed, *options)
        out, errors = running.communicate(timeout=240)
        assert self.result.is_file(), errors
        return running.returncode, out + errors, json.loads(self.result.read_text())

    def assert_has(self, host: LabHost, packed: Packed) -> None:
        """Check the data set through the link, as a trial reads it."""
        manifest = json.loads(host.run(f"cat {LINK}/manifest.json"))
        assert manifest["version"] == packed.metadata.version
        there = host.run(
            f"cd {LINK} && find . -type f ! -name manifest.json | sort | xargs sha256sum"
        )
        found = {line.split()[1][2:]: line.split()[0] for line in there.splitlines()}
        assert found == {path: entry["sha256"] for path, entry in manifest["files"].items()}

    def image(self, host: LabHost, packed: Packed) -> Path:
        return host.folder / "store" / "mini" / packed.metadata.image
