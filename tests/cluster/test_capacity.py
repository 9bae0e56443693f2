"""Which trials a cluster can schedule, compared with Determined's own rule."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from determined.common.api import bindings
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import require_capacity, trial_sizes
from cluster.errors import ClusterError
from tests.agents import CPU, H100, L4, agent


def master_can_schedule(agents: list[int], requested: int) -> bool:
    """Apply Determined 0.38.1's fitting algorithm to idle agents."""
    if any(agent >= requested for agent in agents):
        return True
    for slots in sorted({*agents} - {0}, reverse=True):
        available = slots * agents.count(slots)
        if available >= requested and requested % slots == 0:
            return True
    return False


@given(st.lists(st.integers(0, 8), max_size=6), st.integers(1, 50))
def test_trial_sizes_match_the_masters_scheduling(agents: list[int], requested: int) -> None:
    assert (requested in trial_sizes(agents)) == master_can_schedule(agents, requested)


class _Connection:
    """Stands in for a MasterConnection, and for its session."""

    name, master = "main", "https://10.0.0.1:8443"

    def __init__(self, *agents: dict[str, Any], default: str = "default") -> None:
        self.agents, self.default = agents, default

    def session(self) -> Any:
        return self

    def _do_request(self, *, path: str, **_: Any) -> Any:
        content: dict[str, Any] = {"agents": list(self.agents)}
        if path == "/api/v1/resource-pools":
            names = ["other", self.default]
            content = {"resourcePools": [pool(name, name == self.default) for name in names]}
        return SimpleNamespace(status_code=200, json=lambda: content)


def pool(name: str, default: bool) -> dict[str, Any]:
    """A resource pool with the fields that every answer has."""
    parameters = inspect.signature(bindings.v1ResourcePool.__init__).parameters.values()
    required: dict[str, Any] = {
        each.name: 0
        for each in parameters
        if each.default is inspect.Parameter.empty and each.name != "self"
    }
    kinds = {
        "type": "RESOURCE_POOL_TYPE_STATIC",
        "schedulerType": "SCHEDULER_TYPE_PRIORITY",
        "schedulerFittingPolicy": "FITTING_POLICY_BEST",
        "slotType": "TYPE_UNSPECIFIED",
        "details": {},
    }
    return {**required, **kinds, "name": name, "defaultComputePool": default}


def test_a_trial_that_could_never_run_is_rejected() -> None:
    small = [agent(f"node-{number}", CPU) for number in range(3)]
    cluster = _Connection(*small, agent("node-9", *4 * [CPU], enabled=False))
    assert "3 slots (3 of processors)" in require_capacity(cluster, 3)  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match=r"is 4, .* 3 with 1.*Possible: 1, 2, 3\."):
        require_capacity(cluster, 4)  # type: ignore[arg-type]


def test_a_cluster_without_agents_is_reported() -> None:
    with pytest.raises(ClusterError, match="no enabled agent with slots is connected"):
        require_capacity(_Connection(agent("node-1", CPU, enabled=False)), 1)  # type: ignore[arg-type]


def test_only_the_slots_of_the_experiments_pool_count() -> None:
    cluster: Any = _Connection(
        agent("node-1", H100, H100, pool="gpus"),
        agent("node-2", H100, L4, pool="gpus"),
        agent("node-3", *3 * [CPU], pool="cpus"),
        default="gpus",
    )
    default = "resource pool gpus: 4 slots (3 of NVIDIA H100 80GB HBM3, 1 of NVIDIA L4)"
    assert require_capacity(cluster, 4) == default
    assert require_capacity(cluster, 0, "none") == "resource pool none: no slots"
    assert "3 slots (3 of processors)" in require_capacity(cluster, 3, "cpus")
    with pytest.raises(ClusterError, match=r"is 4, .* resource pool cpus .*Possible: 1, 2, 3\."):
        require_capacity(cluster, 4, "cpus")
    with pytest.raises(ClusterError, match=r"is 3, .* resource pool gpus "):
        require_capacity(cluster, 3)
    with pytest.raises(ClusterError, match="resource pool nowhere, so no trial can run"):
        require_capacity(cluster, 1, "nowhere")


def test_a_pool_of_gpus_and_processors_is_refused() -> None:
    """Unless the agents of processors are drained, or the trial needs no slot."""
    gpus, processors = agent("node-1", H100), agent("node-2", CPU)
    mixed: Any = _Connection(gpus, processors)
    with pytest.raises(ClusterError, match=r"GPUs \(agents node-1\) .*HOST=node-2"):
        require_capacity(mixed, 1)
    require_capacity(mixed, 0)
    drained: Any = _Connection(gpus, agent("node-2", CPU, enabled=False))
    assert "1 slots (1 of NVIDIA H100" in require_capacity(drained, 1)
