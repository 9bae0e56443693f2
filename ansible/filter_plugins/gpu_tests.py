"""Evaluates what a container, started as the agent starts those of trials, did with the GPUs."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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

NAME = "GPUs in containers"
DRAIN = "make cluster-drain HOST={host}"
REBOOT = f"{DRAIN}, reboot it, then make cluster-undrain HOST={{host}}"
DRIVER = "install NVIDIA's driver {minimum} or newer on {host}, and reboot it"
CAPABILITY = (
    "torch has no kernels for this GPU: use one of compute capability 7.5 or newer, or leave it "
    "out with gpus: none"
)
FABRIC = (
    "GPUs that NVSwitches connect need NVIDIA's fabric manager, of exactly the driver's version: "
    "install nvidia-fabricmanager, then systemctl enable --now nvidia-fabricmanager on {host}; "
    "journalctl --unit nvidia-fabricmanager names its errors"
)
FAULTY = (
    "look for Xid in `dmesg | grep -i nvrm` on {host} (NVIDIA's documentation explains the "
    f"numbers); then {REBOOT}. If it happens again, the GPU, its slot or its power supply is faulty"
)

# What Docker and NVIDIA's container toolkit say when they cannot start a container -> what to do.
START_REMEDIES = {
    # moby daemon/devices_nvidia_linux.go: dockerd looks for the toolkit's programs when it starts.
    "could not select device driver": "Docker does not know NVIDIA's container toolkit: run make "
    "cluster-up, which installs it. If `nvidia-ctk --version` answers, it came after Docker was "
    f"started: {DRAIN}, then systemctl restart docker on it",
    "unresolvable CDI device": "Docker's list of devices is older than the GPUs or their driver: "
    "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml on {host} (`nvidia-ctk cdi list` shows "
    "what the list has)",
    "driver/library version mismatch": f"the driver was upgraded while it was in use: {REBOOT}",
    "unsatisfied condition": DRIVER,
    "driver not loaded": "the driver's kernel module is not loaded: `modprobe nvidia` on {host} "
    "says why",
    "libnvidia-ml.so.1": "the driver's libraries are missing: " + DRIVER,
    "unknown device": "a GPU of the agent is gone (`nvidia-smi -L` on {host} lists the others): "
    + FAULTY,
    "No such image": "run make cluster-upgrade, which brings the image to the hosts",
    "no space left on device": "free space on Docker's disk of {host}: docker system df",
    "did not complete within": "the engine or the driver hangs: " + FAULTY,
}
# What torch, DALI and CUDA say about a GPU -> what to do.
GPU_REMEDIES = {
    "no kernel image is available": CAPABILITY,
    "system not yet initialized": FABRIC,
    "Error 802": FABRIC,
    "driver on your system is too old": DRIVER,
    "Error 803": f"the driver's libraries and kernel module differ: {REBOOT}",
    "Found no NVIDIA driver": "the container got no driver: run make cluster-up, which sets up "
    "NVIDIA's container toolkit",
    "No CUDA GPUs are available": "the container did not get this GPU: if `nvidia-smi -L` on "
    "{host} does not list it, it is lost; else restart the agent, whose slots have changed",
    "out of memory": "other programs use the GPU's memory: `nvidia-smi` on {host} lists them",
}


def gpu_uuids(agents: Iterable[Mapping[str, Any]], host: str, gpus: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs by which the agent of a host asks Docker for the GPUs of its slots.

    With MIG they are those of the instances (Determined's agent/internal/detect/nvidia.go). Those
    that the host itself shows stand in for an agent that has not connected.

    Args:
        agents: The agents in the master's answer.
        host: The host's name, which is its agent's.
        gpus: `gpus` of what host_probe returned.
    """
    slots = next((agent.get("slots") or {} for agent in agents if agent["id"] == host), {})
    devices = [slot.get("device") or {} for _, slot in sorted(slots.items())]
    found = [device["uuid"] for device in devices if device.get("type") == "TYPE_CUDA"]
    return found or [device["uuid"] for device in gpus.get("devices", ()) if not device.get("mig")]


def container_checks(job: Mapping[str, Any], host: str, minimum: int | str) -> list[Check]:
    """Evaluate the output of gpu_check.py, or why its container did not start.

    Args:
        job: The result of Ansible's task; empty if there was nothing to try.
        host: The host's name in the inventory.
        minimum: The oldest driver that works.
    """
    if not job or job.get("skipped"):
        return []
    words = {"host": host, "minimum": minimum}
    try:
        report = json.loads(str(job.get("stdout") or "").strip().splitlines()[-1])
    except (ValueError, IndexError):
        error = _start_error(job)
        remedy = _remedy(error, START_REMEDIES, f"start the container by hand: {_command(job)}")
        return [checks.check(host, NAME, False, error, remedy.format(**words))]
    found = [
        checks.check(
            host,
            NAME,
            False,
            f"{gpu['name'] or 'GPU'} {gpu['uuid']}{_capability(gpu)}: {gpu['error']}",
            _remedy(gpu["error"], GPU_REMEDIES, FAULTY).format(**words),
        )
        for gpu in report["gpus"]
        if not gpu["ok"]
    ]
    working = [gpu for gpu in report["gpus"] if gpu["ok"]]
    if working:
        names = Counter(f"{gpu['name']} ({gpu['capability']})" for gpu in working)
        listed = ", ".join(f"{count} x {name}" for name, count in names.items())
        found.append(checks.check(host, NAME, True, f"{listed}: {_did(working)}"))
        found.append(checks.check(host, "JPEG decoder", True, _decoders(report, working)))
    return found


def _did(gpus: list[Mapping[str, Any]]) -> str:
    busy = [gpu["busy"] for gpu in gpus if gpu.get("busy")]
    if len(busy) == len(gpus):
        return f"in use, so not tried ({busy[0]})"
    in_use = f"; {len(busy)} in use, so not tried" if busy else ""
    return f"multiplies matrices and decodes JPEGs as the processor does{in_use}"


def _decoders(report: Mapping[str, Any], gpus: list[Mapping[str, Any]]) -> str:
    """Describe which decoders trials have; none but CUDA's is needed."""
    engines = sum(bool(gpu.get("hardware_decoder")) for gpu in gpus)
    if engines:
        return f"CUDA; hardware_decoder: true also uses the JPEG engines of {engines} GPU(s)"
    if report["decoders"]["hardware"]:
        return "CUDA; no GPU has a JPEG engine"
    return (
        "CUDA; JPEG engines (A100, H100, B200) cannot be used: containers get no "
        "libnvcuvid.so.1, since Determined asks Docker for compute and utility only"
    )


def _capability(gpu: Mapping[str, Any]) -> str:
    return f" (compute capability {gpu['capability']})" if gpu["capability"] else ""


def _start_error(job: Mapping[str, Any]) -> str:
    """Return the line in which Docker or the toolkit says why there is no container."""
    text = str(job.get("stderr") or job.get("msg") or "no result")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no result"]
    toolkit = [line for line in lines if line.startswith("nvidia-container-cli:")]
    docker = [line for line in lines if "Error response from daemon: " in line]
    line = (toolkit or docker or lines[-1:])[0]
    return line.rpartition("Error response from daemon: ")[2]


def _remedy(error: str, remedies: Mapping[str, str], otherwise: str) -> str:
    lower = error.lower()
    return next((remedies[text] for text in remedies if text.lower() in lower), otherwise)


def _command(job: Mapping[str, Any]) -> str:
    # Braces would be taken for places to fill in.
    return " ".join(map(str, job.get("cmd") or ["docker run"])).replace("{", "").replace("}", "")


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"gpu_uuids": gpu_uuids}
