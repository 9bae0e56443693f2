"""Whether a cluster can ever place a trial of so many slots.

Determined's master takes an experiment that no set of its agents can run, and leaves it in the
queue for good. Its rule (master/internal/rm/agentrm/fitting.go): a trial gets slots of one agent,
or all slots of several agents that have the same number of them.
"""

from collections import Counter
from collections.abc import Sequence

from determined.common.api import bindings

from cluster.connection import MasterConnection, explained
from cluster.errors import ClusterError


def trial_sizes(agents: Sequence[int]) -> list[int]:
    """The numbers of slots that a trial can have on agents with these numbers of slots each."""
    on_one = range(1, max(agents, default=0) + 1)
    on_several = {
        slots * number for slots, count in Counter(agents).items() for number in range(1, count + 1)
    }
    return sorted({*on_one, *on_several} - {0})


def require_capacity(connection: MasterConnection, slots: int) -> None:
    """See that the cluster's agents can run a trial, busy as they may be now.

    Raises:
        ClusterError: They cannot; the message says which sizes they can run.
    """
    session = connection.login()._session
    with explained(connection):
        agents = bindings.get_GetAgents(session).agents
    sizes = [len(agent.slots or {}) for agent in agents if agent.enabled]
    possible = trial_sizes(sizes)
    if slots in possible or slots == 0:
        return
    if not possible:
        raise ClusterError(
            f"no agent is connected to {connection.master} and enabled, so no trial can run: "
            + (
                "make local-up starts one"
                if connection.name == "local"
                else "see make cluster-status"
            )
        )
    each = ", ".join(
        f"{count} with {size}" for size, count in sorted(Counter(sizes).items(), reverse=True)
    )
    raise ClusterError(
        f"resources.slots_per_trial is {slots}, and the cluster's agents (by slots: {each}) cannot "
        "hold such a trial: it takes slots of one agent, or all slots of several that have the "
        f"same number. Possible: {', '.join(map(str, possible))}. For example: "
        f'ARGS="--config resources.slots_per_trial={max(possible)}"'
    )
