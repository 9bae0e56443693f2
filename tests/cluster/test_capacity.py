"""Which trials a cluster can schedule, compared with Determined's own rule."""

from types import SimpleNamespace
from typing import Any

import pytest
from determined.common.api import bindings
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import require_capacity, trial_sizes
from cluster.errors import ClusterError


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
    """Stands in for a MasterConnection."""

    name, master = "main", "https://10.0.0.1:8443"

    def session(self) -> None:
        return None


def _with_agents(monkeypatch: pytest.MonkeyPatch, *agents: tuple[int, bool]) -> Any:
    known = [
        SimpleNamespace(enabled=enabled, slots={str(n): None for n in range(slots)})
        for slots, enabled in agents
    ]
    monkeypatch.setattr(bindings, "get_GetAgents", lambda session: SimpleNamespace(agents=known))
    return _Connection()


def test_a_trial_that_could_never_run_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _with_agents(monkeypatch, (1, True), (1, True), (1, True), (4, False))
    require_capacity(cluster, 3)
    with pytest.raises(ClusterError, match=r"is 4, .* 3 with 1.*Possible: 1, 2, 3\."):
        require_capacity(cluster, 4)


def test_a_cluster_without_agents_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="no enabled agent is connected"):
        require_capacity(_with_agents(monkeypatch, (2, False)), 1)
