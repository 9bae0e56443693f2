#!/usr/bin/python
"""Probes a host without changing it; preflight and doctor evaluate the result."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: host_probe
short_description: Probe a host without changing it
description:
  - Returns what the checks of a host need, as plain data. Needs no privileges and no packages.
options:
  paths:
    description: Paths whose free space is wanted; for a missing path, that of its nearest parent.
    type: list
    elements: str
    default: []
  peers:
    description: TCP ports that this host must be able to reach, as name, address and port.
    type: list
    elements: dict
    default: []
  names:
    description: Names and addresses of hosts; those that this host takes for itself are wanted.
    type: list
    elements: str
    default: []
  packages:
    description: Names of packages; the versions that apt would install are wanted.
    type: list
    elements: str
    default: []
  data:
    description: The folder of a data set whose version is wanted.
    type: str
  closed:
    description: TCP ports that this host must not be able to reach, as name, address and port.
    type: list
    elements: dict
    default: []
  reference_time:
    description: The control machine's clock in seconds since 1970.
    type: float
    required: true
author: The project's authors
"""

NVIDIA_VENDOR = "0x10de"
# What is asked of nvidia-smi. Old drivers know the first four.
GPU_FIELDS = (
    *("index", "uuid", "name", "driver_version"),
    *("compute_cap", "memory.total", "mig.mode.current", "persistence_mode", "fabric.state"),
)
# Without persistence mode, nvidia-smi initialises each GPU: 30 s for eight.
GPU_SECONDS = 90
TIMEOUT_SECONDS = 10
CONNECT_SECONDS = 3


def _output(*command: str) -> str | None:
    """Return a command's output, or None if the command is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: str | Path) -> str:
    """Return a file's text, or an empty string if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def system() -> dict[str, Any]:
    """Return the distribution's id, version and name, and whether systemd runs the host."""
    lines = _read("/etc/os-release").splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    values = {key: value.strip("\"'") for key, value in pairs.items()}
    return {
        "id": values.get("ID", ""),
        "version": values.get("VERSION_ID", ""),
        "name": values.get("PRETTY_NAME", platform.platform()),
        "systemd": Path("/run/systemd/system").is_dir(),
    }


def memory_bytes() -> int:
    """Return the size of the host's memory."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def disk(path: str) -> dict[str, Any]:
    """Return the device and its free bytes where `path` is, or would be created."""
    wanted = Path(path)
    existing = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    return {
        "exists": existing == wanted,
        "at": str(existing),
        "device": existing.stat().st_dev,
        "free": shutil.disk_usage(existing).free,
    }


def gpus(
    pci: Path = Path("/sys/bus/pci/devices"), driver: Path = Path("/proc/driver/nvidia/version")
) -> dict[str, Any]:
    """Return the NVIDIA GPUs on the PCI bus, and what nvidia-smi says about them.

    A GPU that the host passes to a virtual machine is not counted.

    Args:
        pci: The folder of PCI devices.
        driver: Where the driver's kernel module tells its version.
    """
    kinds = []
    for device in sorted(pci.glob("*")):
        display = _read(device / "class").startswith("0x03")
        passed = (device / "driver").resolve().name == "vfio-pci"
        if display and not passed and _read(device / "vendor").strip() == NVIDIA_VENDOR:
            kinds.append(_read(device / "device").strip())
    state, devices, error = _nvidia_smi(GPU_FIELDS)
    if "not a valid field" in error:
        # An old driver knows fewer.
        state, devices, error = _nvidia_smi(GPU_FIELDS[:4])
    if not devices and not kinds:
        state, error = "absent", ""
    loaded = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", _read(driver))
    return {
        "state": state,
        "error": error,
        "on_bus": len(kinds),
        "kinds": kinds,
        "visible": len(devices),
        "names": [device["name"] for device in devices],
        "driver": devices[0]["driver_version"] if devices else None,
        "loaded_driver": loaded[0] if loaded else None,
        "devices": [_gpu(device) for device in devices],
    }


def _nvidia_smi(fields: tuple[str, ...]) -> tuple[str, list[dict[str, str]], str]:
    """Ask nvidia-smi for fields of each GPU.

    Returns:
        `working`, `failed` or `slow`; field -> value of each GPU; and the first line of what
        nvidia-smi says besides, such as that a GPU is lost.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return "failed", [], "nvidia-smi is not installed"
    query = f"--query-gpu={','.join(fields)}"
    try:
        process = subprocess.Popen(
            [program, query, "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, _ = process.communicate(timeout=GPU_SECONDS)
    except subprocess.TimeoutExpired:
        # Nothing waits for its end: a process that waits for a GPU may not even be killed.
        process.kill()
        return "slow", [], f"nvidia-smi gave no answer within {GPU_SECONDS} s"
    except OSError as error:
        return "failed", [], str(error)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    values = [line.split(", ") for line in lines]
    rows = [dict(zip(fields, row, strict=True)) for row in values if len(row) == len(fields)]
    others = [line for line, row in zip(lines, values, strict=True) if len(row) != len(fields)]
    if process.returncode or not rows:
        return "failed", [], (others or [f"nvidia-smi ends with {process.returncode}"])[0]
    return "working", rows, (others or [""])[0]


def _gpu(device: dict[str, str]) -> dict[str, Any]:
    """Return a GPU as the checks need it; what its driver or its kind does not tell is None."""
    told = {
        name: None if value.startswith("[") or value == "N/A" else value
        for name, value in device.items()
    }
    memory = told.get("memory.total")
    return {
        "index": int(device["index"]),
        "uuid": device["uuid"],
        "name": device["name"],
        "capability": told.get("compute_cap"),
        "memory_mib": int(memory) if memory and memory.isdigit() else None,
        "mig": told.get("mig.mode.current") == "Enabled",
        "persistence": told.get("persistence_mode") == "Enabled",
        "fabric": told.get("fabric.state"),
    }


def interfaces() -> dict[str, list[str]]:
    """Return the addresses of each network interface."""
    try:
        listed = json.loads(_output("ip", "-json", "address") or "[]")
    except ValueError:
        listed = []
    return {
        each["ifname"]: [address["local"] for address in each["addr_info"] if "local" in address]
        for each in listed
        if "ifname" in each
    }


def listening_ports() -> list[int]:
    """Return the TCP ports that something listens on."""
    ports: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return sorted(ports)


def docker() -> dict[str, Any]:
    """Return the kind and version of the installed Docker, its data's folder and whose it is."""
    found = shutil.which("docker", path="/usr/bin:/usr/local/bin:/bin:/snap/bin")
    if found is None:
        return {"kind": None, "version": None, "data_root": None, "rootless": rootless_user()}
    version = _output(found, "--version") or ""
    kind = "docker"
    if found.startswith("/snap/") or "/snap" in str(Path(found).resolve()):
        kind = "snap"
    elif "podman" in version.lower():
        kind = "podman"
    words = version.replace(",", " ").split()
    number = words[words.index("version") + 1] if "version" in words else None
    return {
        "kind": kind,
        "version": number,
        "data_root": data_root(),
        "rootless": rootless_user(),
    }


def data_root() -> str | None:
    """Return the folder that daemon.json gives Docker for its images, or None for the usual one."""
    try:
        settings = json.loads(_read("/etc/docker/daemon.json") or "{}")
    except ValueError:
        return None  # Another check reports it.
    return settings.get("data-root") if isinstance(settings, dict) else None


def rootless_user(processes: Path = Path("/proc")) -> int | None:
    """Return the number of a user who runs a Docker engine, if root runs none."""
    users = []
    for name in processes.glob("[0-9]*/comm"):
        if _read(name).strip() == "dockerd":
            try:
                users.append(name.stat().st_uid)
            except OSError:
                continue  # It has ended.
    return users[0] if users and 0 not in users else None


def home_file_system() -> str:
    """Return the type of the file system with the user's home directory."""
    home = os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111
    found = ("", "")
    for line in _read("/proc/self/mounts").splitlines():
        _, where, kind, *_ = line.split()
        inside = home == where or home.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(found[0]):
            found = (where, kind)
    return found[1]


def reach(peer: dict[str, Any]) -> dict[str, Any] | None:
    """Try to open a connection; return None on success, or the peer with the error."""
    try:
        with socket.create_connection((peer["address"], int(peer["port"])), CONNECT_SECONDS):
            return None
    except OSError as error:
        return {**peer, "error": str(error), "resolved": not isinstance(error, socket.gaierror)}


def is_loopback(name: str) -> bool:
    """Return whether a name leads to this host's loopback interface, as in Debian's /etc/hosts."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(ipaddress.ip_address(str(each[4][0]).split("%")[0]).is_loopback for each in answers)


def data_set(folder: str | None) -> dict[str, str | None]:
    """Return the name and version of a data set, from its manifest."""
    text = _read(Path(folder) / "manifest.json") if folder else ""
    try:
        manifest = json.loads(text or "{}")
    except ValueError:
        return {"name": None, "version": "unreadable"}
    return {"name": manifest.get("name"), "version": manifest.get("version")}


def candidate(package: str) -> str | None:
    """Return the version of a package that apt would install, or None if it knows none."""
    policy = _output("apt-cache", "policy", package) or ""
    found = re.search(r"^  Candidate: (\S+)$", policy, re.MULTILINE)
    return None if found is None or found[1] == "(none)" else found[1]


def unit_states() -> dict[str, str]:
    """Return the states of the cluster's systemd units that this host has."""
    listed = _output("systemctl", "list-units", "--all", "--plain", "--no-legend", "determined-*")
    rows = [line.split() for line in (listed or "").splitlines()]
    return {row[0]: row[2] for row in rows if row[0].endswith((".service", ".timer"))}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": []},
            "peers": {"type": "list", "elements": "dict", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "data": {"type": "str"},
            "closed": {"type": "list", "elements": "dict", "default": []},
            "reference_time": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    offset = time.time() - module.params["reference_time"]
    with ThreadPoolExecutor(32) as pool:
        unreachable = [error for error in pool.map(reach, module.params["peers"]) if error]
        closed = module.params["closed"]
        tried = zip(closed, pool.map(reach, closed), strict=True)
        exposed = [port for port, error in tried if error is None]
    engine = docker()
    paths = [*module.params["paths"], *filter(None, [engine["data_root"]])]
    module.exit_json(
        changed=False,
        probe={
            "system": system(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "memory": memory_bytes(),
            "clock_offset": offset,
            "disks": {path: disk(path) for path in paths},
            "gpus": gpus(),
            "packages": {name: candidate(name) for name in module.params["packages"]},
            "interfaces": interfaces(),
            "ports": listening_ports(),
            "docker": engine,
            "selinux": _read("/sys/fs/selinux/enforce").strip() == "1",
            "home": home_file_system(),
            "unreachable": unreachable,
            "exposed": exposed,
            "loopback": [name for name in module.params["names"] if is_loopback(name)],
            "data": data_set(module.params["data"]),
            "units": unit_states(),
            "provisioned": Path("/etc/determined").is_dir(),
        },
    )


if __name__ == "__main__":
    main()
