"""Compares the slots of the agents that have connected with those that their hosts should have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Determined's proto/src/determined/device/v1/device.proto.
KINDS = {"TYPE_CUDA": "cuda", "TYPE_CPU": "cpu", "TYPE_ROCM": "rocm"}
NAMES = {"cuda": "GPU", "cpu": "processor", "rocm": "AMD GPU"}


def expected_slots(gpus: int | str, cpu_slots: int | str, mig: bool = False) -> dict[str, Any]:
    """Return what a host's agent should offer: kind, count, and whether there may be more.

    Args:
        gpus: The number of GPUs that the agent's configuration gives it.
        cpu_slots: The number of slots of a host without any.
        mig: Whether one of the GPUs is divided: then each instance is a slot.
    """
    if int(gpus) > 0:
        return {"kind": "cuda", "count": int(gpus), "more": mig}
    return {"kind": "cpu", "count": int(cpu_slots), "more": False}


def slot_problems(
    agents: Iterable[Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]], unit: str
) -> list[str]:
    """Return a line for each agent whose slots are not those expected, with the likely cause.

    The master counts slots only. Fewer than the host has GPUs would be GPUs that nobody uses, and
    processors in their place would train for weeks.

    Args:
        agents: The agents in the master's answer; one that is missing is not reported.
        expected: Agent -> expected_slots.
        unit: The agent's unit and container.
    """
    known = {agent["id"]: list((agent.get("slots") or {}).values()) for agent in agents}
    lines = []
    for host, wanted in expected.items():
        if host not in known:
            continue
        kinds = [_kind(slot) for slot in known[host]]
        count = len(kinds)
        enough = count >= wanted["count"] if wanted["more"] else count == wanted["count"]
        if enough and set(kinds) <= {wanted["kind"]}:
            continue
        cause = _cause(wanted, kinds).format(host=host, unit=unit)
        lines.append(f"{host} has {_described(kinds)}, expected {_expected(wanted)}: {cause}")
    return lines


def _kind(slot: Mapping[str, Any]) -> str:
    device = slot.get("device") or {}
    return KINDS.get(device.get("type", ""), "unknown")


def _described(kinds: list[str]) -> str:
    if not kinds:
        return "no slots"
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return " and ".join(f"{n} {NAMES.get(kind, kind)} slot(s)" for kind, n in counts.items())


def _expected(wanted: Mapping[str, Any]) -> str:
    least = "at least " if wanted["more"] else ""
    return f"{least}{wanted['count']} {NAMES[wanted['kind']]} slot(s)"


def _cause(wanted: Mapping[str, Any], kinds: list[str]) -> str:
    """Return the likely cause and the command that shows it.

    Determined's agent lists GPUs once, when it starts; a nvidia-smi that fails is a warning in its
    log, and no GPUs (agent/internal/detect/nvidia.go).
    """
    if set(kinds) - {wanted["kind"]}:
        return (
            "the agent runs with an older configuration; systemctl restart {unit} on {host}, then "
            "journalctl --unit {unit} shows the devices that it finds"
        )
    if wanted["kind"] == "cpu":
        return "journalctl --unit {unit} on {host} shows the devices that it finds"
    if not kinds:
        return (
            "nvidia-smi fails in the agent's container; on {host}, docker exec {unit} nvidia-smi "
            "-L shows how, and journalctl --unit {unit} when"
        )
    return (
        "GPUs were lost or added after the agent had started; on {host}, compare nvidia-smi -L "
        "with docker exec {unit} nvidia-smi -L, then systemctl restart {unit}"
    )


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"expected_slots": expected_slots, "slot_problems": slot_problems}
