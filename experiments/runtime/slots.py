"""The slots of a trial and of its agent: stops a trial that should be on GPUs and sees none.

Determined's scheduler counts slots and knows no kind of them, so a trial for GPUs can get a slot of
a processor in a pool that has both. And the GPU of a slot can be missing in its container. torch
would train on the processor for days in both cases.
"""

import os

import determined as det
from determined.common.api import bindings, errors

from experiments.runtime.agents import gpu_slots
from experiments.runtime.determined_internals import task_session
from experiments.runtime.devices import gpus_are_hidden, usable_gpu_count
from experiments.runtime.gpus import DeviceError

_WAY_OUT = (
    "To train on processors, set CUDA_VISIBLE_DEVICES=-1 in the experiment's "
    "environment.environment_variables"
)


def slots_of_agent(info: det.ClusterInfo) -> int:
    """Return how many slots the agent of a task has; those of the task if nobody can say."""
    try:
        agent = bindings.get_GetAgent(task_session(info), agentId=info.agent_id).agent
    except (errors.BadRequestException, OSError) as error:
        print(f"slots of agent {info.agent_id}: the master does not say how many: {error}")
        return max(1, len(info.slot_ids))
    return max(1, len(agent.slots or {}))


def require_own_gpu(info: det.ClusterInfo) -> None:
    """Check that a trial sees the GPUs of its slots, and is on GPUs if others of its pool are.

    Raises:
        DeviceError: It sees too few or none; the message says what its slots are.
    """
    seen = usable_gpu_count()
    if seen >= len(info.slot_ids) or gpus_are_hidden():
        return
    try:
        agents = bindings.get_GetAgents(task_session(info), excludeContainers=True).agents
    except (errors.BadRequestException, OSError) as error:
        print(
            f"{seen} GPU(s) for {len(info.slot_ids)} slot(s); the master does not say why: {error}"
        )
        return
    own = next((agent for agent in agents if agent.id == info.agent_id), None)
    if own is None:
        return
    models = [model for slot, model in gpu_slots(own).items() if slot in info.slot_ids]
    if len(models) > seen:
        slots = (
            f"this trial has {len(models)} GPU slot(s) of agent {info.agent_id} "
            f"({', '.join(sorted(set(models)))})"
        )
        if seen and all(model.startswith("MIG") for model in models):
            raise DeviceError(
                f"{slots}, but CUDA uses one instance of MIG in a process: set "
                "resources.slots_per_trial to 1, or turn MIG off on that host"
            )
        raise DeviceError(
            f"{slots}, but its container sees {seen or 'no'} GPU(s) "
            f"(NVIDIA_VISIBLE_DEVICES={os.environ.get('NVIDIA_VISIBLE_DEVICES', '')}). Run "
            "nvidia-smi on that host, then make cluster-doctor; on this machine's own cluster, run "
            f"make local-up again. {_WAY_OUT}"
        )
    pools = set(own.resourcePools or [])
    with_gpus = [
        agent.id
        for agent in agents
        if agent.enabled and pools & set(agent.resourcePools or []) and gpu_slots(agent)
    ]
    if with_gpus and not seen:
        raise DeviceError(
            f"this trial is on processors of agent {info.agent_id}, but agent(s) "
            f"{', '.join(sorted(with_gpus))} of the same resource pool have GPUs: Determined "
            "chooses among slots without regard to their kind. Give the agents with GPUs a pool of "
            "their own, and name it in the experiment's resources.resource_pool, or drain the "
            f"agents without (make cluster-drain). {_WAY_OUT}"
        )
