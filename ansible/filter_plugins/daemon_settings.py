"""Evaluates what the module daemon_json would change in Docker's settings on each host."""

from __future__ import annotations

import importlib.util
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


def daemon_checks(result: Mapping[str, Any], host: str) -> list[dict[str, Any]]:
    """Evaluate a host's daemon.json.

    Args:
        result: What daemon_json returned in check mode.
        host: The host's name in the inventory.
    """
    found = []
    if result.get("problem"):
        found.append(
            checks.check(
                host,
                "daemon.json",
                False,
                result["problem"],
                "correct the file, which is never overwritten, then systemctl restart docker",
            )
        )
    if result.get("userns_remap"):
        found.append(
            checks.check(
                host,
                "daemon.json",
                False,
                f"userns-remap is {result['userns_remap']}",
                "remove it: trials use the host's network, which Docker then refuses",
            )
        )
    return found


def daemon_notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what will change in Docker's settings, and which containers that stops.

    Args:
        results: Host -> what daemon_json returned in check mode.
    """
    notes = []
    for host, result in results.items():
        if not result.get("changed"):
            continue
        note = f"{host}: {result['file']} gets {', '.join(result['added'])}"
        note += "".join(f"; not {key}: {why}" for key, why in result["left_out"].items())
        if result["stops"]:
            note += (
                f". Docker's restart STOPS these running containers: {', '.join(result['stops'])}. "
                "To leave the file as it is: docker_settings: {}"
            )
        elif result["running"]:
            note += ". Running containers keep running"
        notes.append(note)
    return notes


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"daemon_checks": daemon_checks, "daemon_notes": daemon_notes}
