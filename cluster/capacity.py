"""Checks that a resource pool can schedule a trial, and that its slots are of one kind.

Determined's master accepts experiments that its agents can never run, and leaves them queued
forever. Its rule (master/internal/rm/agentrm/fitting.go): a trial gets slots on a single agent, or
all slots of several agents with the same number of slots. It counts slots and does
not know their kind.
"""

from collections import Counter
from collections.abc import Sequence

from determined.common import api
from determined.common.api import bindings

from cluster.connection import MasterConnection, translate_errors
from cluster.errors import ClusterError
from experiments.runtime.agents import gpu_slots


def trial_sizes(agents: Sequence[int]) -> list[int]:
    """Return the possible values of slots_per_trial, given each agent's number of slots."""
    one_agent = range(1, max(agents, default=0) + 1)
    several_agents = {
        slots * number for slots, count in Counter(agents).items() for number in range(1, count + 1)
    }
    return sorted({*one_agent, *several_agents} - {0})


def require_capacity(connection: MasterConnection, slots: int, pool: str | None = None) -> str:
    """Check that a resource pool's agents can run a trial once they are idle.

    Args:
        connection: The cluster.
        slots: The trial's slots.
        pool: The pool that the experiment names; None for the master's default.

    Returns:
        What the slots of the pool are, in words.

    Raises:
        ClusterError: They cannot, and the message lists the sizes that they can run; or some slots
            are GPUs and others processors.
    """
    session = connection.session()
    with translate_errors(connection):
        every = bindings.get_GetAgents(session, excludeContainers=True).agents
        pool = pool or _default_pool(session)
    agents = [agent for agent in every if agent.enabled and pool in (agent.resourcePools or [])]
    sizes = [len(agent.slots or {}) for agent in agents]
    possible = trial_sizes(sizes)
    if slots and slots not in possible:
        raise ClusterError(_too_few(connection, slots, pool, sizes, possible))
    if slots:
        _require_one_kind(agents, pool)
    return f"resource pool {pool}: {_kinds(agents)}"


def _default_pool(session: api.BaseSession) -> str:
    """Return the pool of trials that name none."""
    pools = bindings.get_GetResourcePools(session).resourcePools or []
    return next((pool.name for pool in pools if pool.defaultComputePool), "default")


def _kinds(agents: Sequence[bindings.v1Agent]) -> str:
    """Return how many slots of which GPU, or of processors, agents have."""
    models: Counter[str] = Counter()
    for agent in agents:
        gpus = gpu_slots(agent)
        models.update(gpus.values())
        models["processors"] += len(agent.slots or {}) - len(gpus)
    found = [f"{count} of {model}" for model, count in models.most_common() if count]
    return f"{sum(models.values())} slots ({', '.join(found)})" if found else "no slots"


def _require_one_kind(agents: Sequence[bindings.v1Agent], pool: str) -> None:
    with_gpus = sorted(agent.id for agent in agents if gpu_slots(agent))
    without = sorted(agent.id for agent in agents if len(gpu_slots(agent)) < len(agent.slots or {}))
    if with_gpus and without:
        raise ClusterError(
            f"resource pool {pool} has slots of GPUs (agents {', '.join(with_gpus)}) and of "
            f"processors (agents {', '.join(without)}): Determined chooses among them without "
            "regard to their kind, so the trial could train on processors for days. Give the "
            "agents with GPUs a pool of their own and name it: "
            'ARGS="--config resources.resource_pool=NAME". Or take the others out of the pool: '
            f"make cluster-drain HOST={without[0]}"
        )


def _too_few(
    connection: MasterConnection,
    slots: int,
    pool: str,
    sizes: Sequence[int],
    possible: Sequence[int],
) -> str:
    if not possible:
        return (
            f"no enabled agent with slots is connected to {connection.master} in resource pool "
            f"{pool}, so no trial can run: "
            + (
                "start one with make local-up"
                if connection.name == "local"
                else "see make cluster-status"
            )
        )
    counts = ", ".join(
        f"{count} with {size}" for size, count in sorted(Counter(sizes).items(), reverse=True)
    )
    return (
        f"resources.slots_per_trial is {slots}, which does not fit the agents of resource pool "
        f"{pool} (by number of slots: {counts}). A trial runs on one agent, or on all slots of "
        f"several agents with the same number of slots. Possible: {', '.join(map(str, possible))}. "
        f'For example: ARGS="--config resources.slots_per_trial={max(possible)}"'
    )
