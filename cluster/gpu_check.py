"""Checks everything about this machine's GPUs that only a machine with GPUs can tell.

The computations are those of cluster-doctor (ansible/roles/doctor/files); here they run in this
environment, and in the task image if Docker has it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import docker
from cluster.connection import ROOT
from cluster.errors import ClusterError
from cluster.gpus import AgentGpus, require_container_gpus
from experiments.runtime.gpus import (
    PCI_DEVICES,
    DeviceError,
    Gpu,
    find_gpus,
    silent_gpus,
    usable_gpus,
)
from tools.versions import task_image

_PROGRAMS = ROOT / "ansible" / "roles" / "doctor" / "files"
_SECONDS = 400.0  # of one program: the image's libraries may come from a slow disk


@dataclass(frozen=True)
class Step:
    """One thing that was checked; ok is None if it could not be, and detail says why."""

    name: str
    ok: bool | None
    detail: str


def check_gpus(report: Callable[[Step], None]) -> list[Gpu]:
    """Check the GPUs, step by step, and return those that were tried.

    Args:
        report: Called with each step when it is done.
    """
    image = task_image()

    def done(*new: Step) -> None:
        for step in new:
            report(step)

    gpus = _survey(done)
    if gpus:
        uuids = ",".join(gpu.uuid for gpu in gpus)
        done(*_computations("here", [sys.executable, "-"], {"GPUS": uuids}))
        done(_all_reduce(gpus))
        done(*_in_containers(gpus, image))
    return gpus


def _in_containers(gpus: Sequence[Gpu], image: str) -> list[Step]:
    if not (shutil.which("docker") and docker.has_image(image)):
        return [Step("in the task image", None, f"Docker does not have {image}: make image")]
    given = "Docker gives containers the GPUs"
    try:
        require_container_gpus(AgentGpus(tuple(gpus), every=False), image)
    except ClusterError as error:
        return [Step(given, False, str(error))]
    return [
        Step(given, True, f"{len(gpus)} of {len(gpus)}"),
        *_computations("in the task image", _in_container(gpus, image), {}),
    ]


def _survey(done: Callable[[Step], None]) -> list[Gpu]:
    """Report the machine's GPUs with driver and compute capability; return those to try."""
    try:
        found = find_gpus(PCI_DEVICES)
        usable, problems = usable_gpus(found)
    except DeviceError as error:
        done(Step("driver", False, str(error)))
        return []
    if not found:
        done(Step("GPUs", False, "this machine has none: none is on its PCI bus"))
    for gpu in usable:
        major, minor = gpu.capability or (0, 0)
        detail = f"{gpu.name}, compute capability {major}.{minor}, driver {gpu.driver}"
        done(Step(f"GPU {gpu.index}", True, detail + (", MIG" if gpu.mig else "")))
    for problem in problems:
        done(Step("GPU", False, problem))
    if found and (silent := silent_gpus(found, PCI_DEVICES)):
        done(Step("PCI bus", None, silent))
    divided = [gpu for gpu in usable if gpu.mig]
    if divided:
        done(Step("MIG", None, "instances of MIG are not tried: their GPU cannot be named alone"))
    return [gpu for gpu in usable if not gpu.mig]


def _run(
    command: Sequence[str], environment: Mapping[str, str], program: Path | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Run one of doctor's programs; return the JSON that it prints last, or why there is none."""
    try:
        process = subprocess.run(
            command,
            input=program.read_text() if program else None,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_SECONDS:.0f} s"
    for line in reversed(process.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line), ""
    said = (process.stderr.strip() or process.stdout.strip()).splitlines()[-5:]
    return None, f"exit status {process.returncode}: " + " ".join(said)


def _in_container(gpus: Sequence[Gpu], image: str) -> list[str]:
    """Return the command that runs a program on standard input as a trial's container runs."""
    uuids = ",".join(gpu.uuid for gpu in gpus)
    # As Determined's agent asks for them, with what docker/local/trial_network.py adds.
    request = f'driver=nvidia,"device={uuids}","capabilities=compute,utility,video"'
    command = ["docker", "run", "--rm", "--interactive", "--network", "none", "--gpus", request]
    return [*command, "--env", f"GPUS={uuids}", image, "python", "-"]


def _computations(where: str, command: Sequence[str], environment: Mapping[str, str]) -> list[Step]:
    """Multiply matrices on each GPU, decode a JPEG on it, and compare both with the processor."""
    report, error = _run(command, environment, _PROGRAMS / "gpu_check.py")
    if report is None:
        return [Step(f"matrices and JPEGs {where}", False, error)]
    steps = []
    for gpu in report["gpus"]:
        name = f"matrices and JPEGs of {gpu['name'] or gpu['uuid']} {where}"
        if not gpu["ok"]:
            detail = f"{gpu.get('step', 'start')}: {gpu['error']}"
        elif gpu.get("busy"):
            detail = f"not tried: {gpu['busy']}"
        elif gpu.get("hardware_decoder"):
            detail = "as on the processor; CUDA's decoder and the JPEG engines (hardware_decoder)"
        elif report["decoders"]["hardware"]:
            detail = "as on the processor; CUDA's decoder, the GPU has no JPEG engine"
        else:
            detail = (
                "as on the processor; CUDA's decoder alone, for lack of libnvcuvid.so.1 "
                "(docs/gpu-hosts.md)"
            )
        steps.append(Step(name, None if gpu["ok"] and gpu.get("busy") else gpu["ok"], detail))
    return steps


def _all_reduce(gpus: Sequence[Gpu]) -> Step:
    """Sum numbers over all GPUs with NCCL, one process for each."""
    if len(gpus) < 2:
        return Step("NCCL", None, "needs two GPUs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(_PROGRAMS / "all_reduce.py")],
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": str(len(gpus))},
                "CUDA_VISIBLE_DEVICES": gpu.uuid,
                "PYTHONPATH": str(ROOT),  # of which it uses the choice of the interface
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                **{"ADDRESS": "127.0.0.1", "INTERFACE": ""},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, gpu in enumerate(gpus)
    ]
    printed = errors = ""
    try:
        for rank, process in enumerate(ranks):
            output, error = process.communicate(timeout=_SECONDS)
            printed = output if rank == 0 else printed
            errors = errors or (error if process.returncode else "")
    except subprocess.TimeoutExpired:
        return Step("NCCL", False, f"no answer within {_SECONDS:.0f} s")
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if errors or not lines:
        return Step("NCCL", False, " ".join(errors.strip().splitlines()[-5:]) or "no result")
    result = json.loads(lines[-1])
    right = result["correct"] and result["backend"] == "nccl"
    detail = f"{result['backend']}, {result['ranks']} ranks, {result['gigabytes_per_second']} GB/s"
    return Step("NCCL", right, detail if right else f"wrong sums: {detail}")
