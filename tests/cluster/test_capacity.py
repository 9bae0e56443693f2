"""Which trials a cluster can place: Determined's own rule."""

from types import SimpleNamespace
from typing import Any

import pytest
from determined.common.api import bindings
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import require_capacity, trial_sizes
from cluster.errors import ClusterError


def placed(agents: list[int], wanted: int) -> bool:
    """Determined 0.38.1's fitting on idle agents, step by step."""
    if any(agent >= wanted for agent in agents):
        return True
    for slots in sorted({*agents} - {0}, reverse=True):
        available = slots * agents.count(slots)
        if available >= wanted and wanted % slots == 0:
            return True
    return False


@given(st.lists(st.integers(0, 8), max_size=6), st.integers(1, 50))
def test_a_size_is_possible_where_the_master_finds_a_place(agents: list[int], wanted: int) -> None:
    assert (wanted in trial_sizes(agents)) == placed(agents, wanted)


class _Cluster:
    """A connection whose master knows agents with so many slots each."""

    name, master = "main", "https://10.0.0.1:8443"

    def login(self) -> Any:
        return SimpleNamespace(_session=None)


def _with_agents(monkeypatch: pytest.MonkeyPatch, *agents: tuple[int, bool]) -> Any:
    known = [
        SimpleNamespace(enabled=enabled, slots={str(n): None for n in range(slots)})
        for slots, enabled in agents
    ]
    monkeypatch.setattr(bindings, "get_GetAgents", lambda session: SimpleNamespace(agents=known))
    return _Cluster()


def test_a_trial_that_would_wait_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _with_agents(monkeypatch, (1, True), (1, True), (1, True), (4, False))
    require_capacity(cluster, 3)
    with pytest.raises(ClusterError, match=r"is 4, .* 3 with 1.*Possible: 1, 2, 3\."):
        require_capacity(cluster, 4)


def test_a_cluster_without_agents_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="no agent is connected"):
        require_capacity(_with_agents(monkeypatch, (2, False)), 1)
