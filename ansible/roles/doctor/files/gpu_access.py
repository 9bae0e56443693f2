"""Finds running containers that have lost their GPUs, and whether they may; prints a line of JSON.

systemd sets the devices of a container's control group anew whenever it reads its units again
(systemctl daemon-reload), if Docker lets it manage these groups. It knows a device by its link in
/dev/char, and takes those away that have none: NVIDIA's driver makes no such links. Runs as root on
a host, with nothing but the standard library.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 60


def unlinked(devices: Path, links: Path) -> list[str]:
    """Return NVIDIA's device files that have no link."""
    found = []
    for file in sorted(devices.glob("nvidia*")):
        status = file.stat()
        if stat.S_ISCHR(status.st_mode):
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            if not (links / number).exists():
                found.append(file.name)
    return found


def docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Docker's client."""
    try:
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, -1, "", str(error))


def asks_for_gpus(request: "dict[str, Any]") -> bool:
    """Return whether a container's request for devices is one for GPUs, by Docker or by CDI."""
    capable = any("gpu" in names for names in request.get("Capabilities") or [])
    return capable or any("nvidia.com/gpu" in name for name in request.get("DeviceIDs") or [])


def containers() -> list[dict[str, object]]:
    """Return the running containers that were given GPUs, and whether nvidia-smi works there."""
    running = docker("ps", "--quiet").stdout.split()
    listed = docker("inspect", *running) if running else None
    found: list[dict[str, object]] = []
    for each in json.loads(listed.stdout or "[]") if listed else []:
        if not any(map(asks_for_gpus, each["HostConfig"].get("DeviceRequests") or [])):
            continue
        seen = docker("exec", each["Id"], "nvidia-smi", "-L")
        output = (seen.stdout or seen.stderr).strip().partition("\n")[0]
        found.append({"name": each["Name"].lstrip("/"), "rc": seen.returncode, "output": output})
    return found


def main(devices: str = "/dev", links: str = "/dev/char") -> None:
    """Print what was found."""
    groups = docker("info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}}").stdout.split()
    print(
        json.dumps(
            {
                "driver": groups[0] if groups else None,
                "version": groups[1] if len(groups) > 1 else None,
                "unlinked": unlinked(Path(devices), Path(links)),
                "containers": containers(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
