"""Whether the agent of a cluster on one machine gets GPUs, checked before anything is started."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from cluster import docker
from cluster.errors import ClusterError
from experiments.runtime.gpus import (
    PCI_DEVICES,
    DeviceError,
    Gpu,
    find_gpus,
    silent_gpus,
    usable_gpus,
)

GpuChoice = Literal["auto", "none", "required"]

WAY_OUT = "To train on processors instead: make local-up GPUS=none"
_GUIDE = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
# The first engine whose driver `nvidia` uses CDI (moby's daemon/devices_nvidia_linux.go).
_CDI_ENGINE = (29, 2)
# What Docker's driver `nvidia` looks for on dockerd's PATH when dockerd starts; the second only in
# engines that use CDI.
_HOOK, _CDI_HOOK = "nvidia-container-runtime-hook", "nvidia-cdi-hook"


@dataclass(frozen=True)
class AgentGpus:
    """The GPUs that the agent's container gets; none for slots of processors."""

    gpus: tuple[Gpu, ...] = ()
    every: bool = True  # these are all GPUs of the machine

    @property
    def slots(self) -> int:
        """The number of slots that they must become, at least: instances of MIG are slots too."""
        return len(self.gpus)

    @property
    def kind(self) -> str:
        """What the slots are, in words."""
        return ", ".join(sorted({gpu.name for gpu in self.gpus})) or "processors"

    def compose_file(self) -> str:
        """Return what compose needs besides docker-compose.yaml, as JSON, which is YAML too.

        The agent numbers its slots by the GPUs that it sees, and after a restart finds its trials
        again by these numbers. So it must see those that it may use and no others.
        """
        which: dict[str, Any] = (
            {"count": "all"} if self.every else {"device_ids": [gpu.uuid for gpu in self.gpus]}
        )
        device = {"driver": "nvidia", **which, "capabilities": ["gpu", "utility"]}
        agent = {
            "environment": {"DET_SLOT_TYPE": "cuda", "DET_ARTIFICIAL_SLOTS": "0"},
            "deploy": {"resources": {"reservations": {"devices": [device]}}},
        }
        return json.dumps({"services": {"agent": agent}}, indent=2) + "\n"

    def docker_option(self) -> str:
        """Return the value of `docker run --gpus` that asks for the same."""
        which = "count=all" if self.every else f'"device={",".join(g.uuid for g in self.gpus)}"'
        # The command line adds the capability gpu.
        return f'driver=nvidia,{which},"capabilities=utility"'


PROCESSORS = AgentGpus()


def agent_gpus(choice: GpuChoice, *, agents: int, image: str, console: Console) -> AgentGpus:
    """Return the GPUs for the agent, after a container has shown that Docker hands them out.

    Args:
        choice: auto (all that can be used), none, or required (the same as auto, but no GPU is an
            error).
        agents: Number of agents.
        image: The task image, in which nvidia-smi is run.
        console: Where GPUs that are left out are reported.

    Raises:
        ClusterError: There are GPUs, but not for containers; the message says why and what to do.
    """
    if choice == "none":
        return PROCESSORS
    try:
        found = find_gpus(PCI_DEVICES)
        usable, problems = usable_gpus(found)
    except DeviceError as error:
        raise ClusterError(f"{error}. {WAY_OUT}") from error
    if found and not usable:
        raise ClusterError(f"{'. '.join(problems)}. {WAY_OUT}")
    if not found:
        if choice == "required":
            raise ClusterError(
                "GPUS=required, but this machine has no NVIDIA GPU: none is on its PCI bus, and "
                f"nvidia-smi lists none. {WAY_OUT}"
            )
        return PROCESSORS
    if agents > 1:
        raise ClusterError(
            f"AGENTS={agents}, but this machine has {len(usable)} GPU(s), and each of these agents "
            "would hand out all of them. Use one agent, whose slots are the GPUs (AGENTS=1, the "
            "default), or try several agents on processors: make local-up "
            f"AGENTS={agents} GPUS=none"
        )
    if silent := silent_gpus(found, PCI_DEVICES):
        console.print(silent, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"Left out: {problem}", highlight=False, soft_wrap=True)
    gpus = AgentGpus(tuple(usable), every=not problems)
    require_container_gpus(gpus, image)
    return gpus


def require_container_gpus(gpus: AgentGpus, image: str, *, seconds: float = 120.0) -> None:
    """Check with a container that Docker hands out these GPUs, as it will to the agent.

    Raises:
        ClusterError: It does not; the message says why and what to do.
    """
    command = ["docker", "run", "--rm", "--network", "none", "--gpus", gpus.docker_option()]
    command += ["--entrypoint", "nvidia-smi", image, "-L"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"nvidia-smi in a container has not answered for {seconds:.0f} s: enable persistence "
            f"mode (sudo systemctl enable --now nvidia-persistenced). {WAY_OUT}"
        ) from None
    seen = sum(line.startswith("GPU ") for line in process.stdout.splitlines())
    # Of GPUs that are divided (MIG), the container's nvidia-smi may list the instances only.
    if process.returncode == 0 and (seen == len(gpus.gpus) or any(gpu.mig for gpu in gpus.gpus)):
        return
    if process.returncode == 0:
        reason = f"a container sees {seen} of {len(gpus.gpus)} GPU(s)"
    else:
        lines = (process.stderr.strip() or process.stdout.strip()).splitlines()
        reason = " ".join(line.strip() for line in lines if "--help" not in line)[-600:]
        reason = reason.removeprefix("docker: Error response from daemon: ")
    raise ClusterError(
        f"Docker cannot give containers this machine's GPUs: {reason.rstrip('. ')}. "
        f"{_remedy(reason)}. {WAY_OUT}"
    )


def _remedy(reason: str) -> str:
    """Return what makes Docker hand out GPUs, given why it does not and what is installed."""
    info = json.loads(docker.run("info", "--format", "{{json .}}"))
    hooks = [_HOOK, _CDI_HOOK] if _version(info["ServerVersion"]) >= _CDI_ENGINE else [_HOOK]
    steps = ["sudo systemctl restart docker"]
    if "nvidia" not in info.get("Runtimes", {}):
        steps.insert(0, "sudo nvidia-ctk runtime configure --runtime=docker")
    if not any(map(shutil.which, hooks)):
        return (
            "NVIDIA's container toolkit is not installed. Install the package "
            f"nvidia-container-toolkit ({_GUIDE}), then: {' && '.join(steps)}"
        )
    if "could not select device driver" in reason:
        return (
            "NVIDIA's container toolkit is installed, but Docker's engine looks for it only when "
            f"it starts: {' && '.join(steps)}"
        )
    if _CDI_HOOK in hooks:
        devices = [each.get("ID", "") for each in info.get("DiscoveredDevices") or []]
        known = ", ".join(each for each in devices if each.startswith("nvidia.com/")) or "none"
        return (
            f"This engine ({info['ServerVersion']}) finds GPUs by their descriptions in /etc/cdi "
            f"and /var/run/cdi (it knows: {known}). Write them anew: "
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        )
    return f"Install the newest nvidia-container-toolkit ({_GUIDE}), then: {' && '.join(steps)}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
