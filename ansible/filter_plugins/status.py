"""Combines the state of the hosts and of the master into the cluster's status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Determined's states of an experiment that has not ended.
ACTIVE = {"ACTIVE", "PAUSED", "QUEUED", "PULLING", "STARTING", "RUNNING", "STOPPING_COMPLETED"}


def cluster_status(
    hosts: Mapping[str, Mapping[str, Any]], api: Mapping[str, Any], name: str, image: str
) -> dict[str, Any]:
    """Return the cluster's status, as `make cluster-status JSON=1` prints it.

    Args:
        hosts: Host -> address, master, agent (whether it is in that group), probe, error, images,
            firewall (what `firewall.py state` printed, or an error as its rules).
        api: The master's answers: url, error, master, agents, experiments.
        name: The cluster's name.
        image: The task image's name.
    """
    agents = {agent["id"]: agent for agent in api["agents"]}
    return {
        "cluster": name,
        "master": {
            "url": api["url"],
            "answers": not api["error"],
            "error": api["error"],
            "version": api["master"].get("version"),
        },
        "task_image": image,
        "hosts": [_host(host, state, agents.get(host)) for host, state in hosts.items()],
        # Agents that are not in the inventory.
        "unknown_agents": sorted(set(agents) - set(hosts)),
        "experiments": [_experiment(experiment) for experiment in api["experiments"]],
    }


def _host(host: str, state: Mapping[str, Any], agent: Mapping[str, Any] | None) -> dict[str, Any]:
    probe = state["probe"]
    row: dict[str, Any] = {
        "host": host,
        "address": state["address"],
        "roles": [role for role in ("master", "agent") if state[role]],
        "reachable": probe is not None,
        "units": probe["units"] if probe else {},
        "gpus": probe["gpus"]["visible"] if probe else 0,
        "driver": probe["gpus"]["driver"] if probe else None,
        "data": probe["data"] if probe else {"name": None, "version": None},
        "image": image_digest(state["images"]),
        # In force, missing, changed, not installed, or why they cannot be read.
        "firewall": state["firewall"]["rules"],
    }
    slots = list((agent or {}).get("slots", {}).values())
    containers = [slot["container"] for slot in slots if slot.get("container")]
    return row | {
        "connected": agent is not None,
        "enabled": bool(agent and agent.get("enabled")),
        "draining": bool(agent and agent.get("draining")),
        "agent_version": agent.get("version") if agent else None,
        "slots": len(slots),
        "slots_used": len(containers),
    }


def image_digest(images: list[Mapping[str, Any]]) -> str | None:
    """Return an image's id on the host."""
    return str(images[0]["Id"]) if images else None


def _experiment(experiment: Mapping[str, Any]) -> dict[str, Any]:
    state = str(experiment["state"]).removeprefix("STATE_")
    return {
        "id": experiment["id"],
        "name": experiment.get("name", ""),
        "state": state,
        "active": state in ACTIVE,
        "progress": experiment.get("progress"),
        "trials": experiment.get("numTrials", 0),
    }


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"cluster_status": cluster_status}
