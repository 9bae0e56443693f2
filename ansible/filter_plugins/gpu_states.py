"""Evaluates states of GPUs in which a host looks well and some or all trials fail."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def _load(name: str) -> ModuleType:
    # Ansible loads each plugin on its own: a plain import does not find the file next to it.
    file = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"efficientdet_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = _load("checks")

Check = dict[str, Any]

# States of a GPU that has joined its NVLink fabric, or has none to join.
JOINED = ("Completed", "Not Supported")


def state_checks(gpus: Mapping[str, Any], host: str) -> list[Check]:
    """Evaluate what nvidia-smi reports of GPUs that it lists.

    What it does not report is unknown and no failure: an A100 shows no fabric state even where it
    needs a fabric manager; there, the test in a container fails with CUDA's error 802.

    Args:
        gpus: `gpus` of what host_probe returned.
        host: The host's name in the inventory.
    """
    devices = gpus.get("devices", [])
    return _lost(devices, host) + _fabric(devices, gpus.get("driver"), host) + _mig(devices, host)


def _lost(devices: list[Mapping[str, Any]], host: str) -> list[Check]:
    """Name GPUs that have fallen off the bus while their driver ran.

    nvidia-smi leaves them out, or has their names and no more. An agent that restarts then finds
    fewer devices than its trials' containers name by number, and ends with `index out of range`
    until the master gives these trials up (agent/internal/containers/spec.go of Determined,
    unmakeContainerDockerLabels).
    """
    indices = {device["index"] for device in devices}
    lost = [f"GPU {index}" for index in range(max(indices, default=-1)) if index not in indices]
    answering = [device for device in devices if device.get("memory_mib") is not None]
    if answering:  # A driver older than these fields has them for no GPU.
        lost += [
            f"GPU {device['index']} ({device['name']})"
            for device in devices
            if device.get("memory_mib") is None
        ]
    if not lost:
        return []
    remedy = (
        f"`dmesg | grep -i xid` on {host} says why; make cluster-drain HOST={host}, reboot it, "
        f"then make cluster-undrain HOST={host}. Until then its agent may end with `index out of "
        "range` when it restarts, and connects with the other GPUs after that. If the GPU is lost "
        "again, check its power, temperature and slot"
    )
    return [checks.check(host, "GPU lost", False, f"no answer from {', '.join(lost)}", remedy)]


def _fabric(devices: list[Mapping[str, Any]], driver: str | None, host: str) -> list[Check]:
    """Find GPUs behind NVSwitches that no fabric manager has connected: CUDA does not start."""
    states = [device["fabric"] for device in devices if device.get("fabric")]
    waiting = [state for state in states if state not in JOINED]
    if not states:
        return []
    major = (driver or "").partition(".")[0]
    remedy = (
        f"start NVIDIA's fabric manager, of exactly the driver's version ({driver}): apt install "
        f"nvidia-fabricmanager-{major}, then systemctl enable --now nvidia-fabricmanager; its "
        "errors are in journalctl --unit nvidia-fabricmanager"
    )
    message = (
        f"{waiting[0]} for {len(waiting)} of {len(devices)} GPUs, so CUDA does not start on them"
        if waiting
        else "all GPUs have joined"
    )
    return [checks.check(host, "NVLink fabric", not waiting, message, remedy)]


def _mig(devices: list[Mapping[str, Any]], host: str) -> list[Check]:
    """Find GPUs that MIG divides, on which no trial can have more than one rank.

    CUDA shows a process one instance, and each rank takes the device of its number, so the second
    finds none. Determined's agent lists instances if the first GPU is divided, and then nothing but
    instances; else it takes a divided GPU for a whole one (agent/internal/detect/nvidia.go).
    """
    divided = [device for device in devices if device.get("mig")]
    if not divided:
        return []
    one_slot = "trials there need slots_per_trial: 1, as CUDA shows a process one instance only"
    listed = ", ".join(f"GPU {device['index']}" for device in divided)
    if len(divided) == len(devices):
        message = f"each instance of {listed} is a slot; {one_slot}"
        return [checks.check(host, "MIG", True, message)]
    lost = "the others become no slots" if devices[0].get("mig") else "they become whole slots"
    remedy = (
        f"divide all GPUs of {host} or none: make cluster-drain HOST={host}, nvidia-smi --mig 0 "
        f"--id INDEX there, a restart of its agent, make cluster-undrain HOST={host}; {one_slot}"
    )
    message = f"{listed} of {len(devices)} divided: {lost}"
    return [checks.check(host, "MIG", False, message, remedy)]


def access_checks(job: Mapping[str, Any], host: str, unit: str) -> list[Check]:
    """Evaluate whether running containers still have their GPUs, and can lose them.

    NVIDIA's notice is nvidia-container-toolkit's issue 48.

    Args:
        job: The result of Ansible's task that ran gpu_access.py; empty if it did not run.
        host: The host's name in the inventory.
        unit: The agent's unit and container.
    """
    try:
        found = json.loads(str(job.get("stdout") or "").strip().splitlines()[-1])
    except (ValueError, IndexError):
        return []
    lost = [
        each["name"]
        for each in found["containers"]
        if each["rc"] != 0 and "Failed to initialize NVML" in each["output"]
    ]
    held = len(found["containers"]) - len(lost)
    renew = [
        f"systemctl restart {unit}" if name == unit else f"docker kill {name}" for name in lost
    ]
    loses = found["driver"] == "systemd" and bool(found["unlinked"])
    links = "nvidia-ctk system create-dev-char-symlinks --create-all"
    return [
        checks.check(
            host,
            "GPUs of running containers",
            not lost,
            f"lost by {', '.join(lost)}: Failed to initialize NVML"
            if lost
            else f"{held} container(s) have theirs",
            f"only a new container has them again: {'; '.join(renew)} on {host} (a trial goes on "
            "from its checkpoint)",
        ),
        checks.check(
            host,
            "GPUs after a daemon-reload",
            not loses,
            "systemctl daemon-reload would take GPUs away from running containers: "
            f"{', '.join(found['unlinked'])} without a link in /dev/char, and Docker leaves "
            f"control groups (version {found['version']}) to systemd"
            if loses
            else f"stay: control groups by {found['driver']}, {len(found['unlinked'])} device(s) "
            "without a link",
            f"run make cluster-up, which makes the links at each boot (by hand: {links})",
        ),
    ]


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"gpu_state_checks": state_checks}
