"""Checks that a cluster can schedule a trial with a given number of slots.

Determined's master accepts experiments that its agents can never run, and leaves them queued
forever. Its rule (master/internal/rm/agentrm/fitting.go): a trial gets slots on a single agent, or
all slots of several agents with the same number of slots.
"""

from collections import Counter
from collections.abc import Sequence

from determined.common.api import bindings

from cluster.connection import MasterConnection, translate_errors
from cluster.errors import ClusterError


def trial_sizes(agents: Sequence[int]) -> list[int]:
    """Return the possible values of slots_per_trial, given each agent's number of slots."""
    one_agent = range(1, max(agents, default=0) + 1)
    several_agents = {
        slots * number for slots, count in Counter(agents).items() for number in range(1, count + 1)
    }
    return sorted({*one_agent, *several_agents} - {0})


def require_capacity(connection: MasterConnection, slots: int) -> None:
    """Check that the cluster's agents can run a trial once they are idle.

    Raises:
        ClusterError: They cannot; the message lists the sizes that they can run.
    """
    session = connection.session()
    with translate_errors(connection):
        agents = bindings.get_GetAgents(session).agents
    sizes = [len(agent.slots or {}) for agent in agents if agent.enabled]
    possible = trial_sizes(sizes)
    if slots in possible or slots == 0:
        return
    if not possible:
        raise ClusterError(
            f"no enabled agent is connected to {connection.master}, so no trial can run: "
            + (
                "start one with make local-up"
                if connection.name == "local"
                else "see make cluster-status"
            )
        )
    counts = ", ".join(
        f"{count} with {size}" for size, count in sorted(Counter(sizes).items(), reverse=True)
    )
    raise ClusterError(
        f"resources.slots_per_trial is {slots}, which does not fit the cluster's agents (by number "
        f"of slots: {counts}). A trial runs on one agent, or on all slots of several agents with "
        f"the same number of slots. Possible: {', '.join(map(str, possible))}. For example: "
        f'ARGS="--config resources.slots_per_trial={max(possible)}"'
    )
