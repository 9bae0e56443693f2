"""The cores of a rank: by affinity and quotas, ranks of the machine and slots of the agent."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import determined as det
import pytest
from determined.common.api import errors

from experiments.input import InputConfig
from experiments.runtime import cores, slots
from experiments.runtime.cores import cores_per_rank, input_threads, usable_cores
from tests.agents import CPU, L4, agent


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cores, "_quotas", lambda *_: [])
    for name in ("LOCAL_WORLD_SIZE", "HOROVOD_LOCAL_SIZE", "DET_AGENT_ID"):
        monkeypatch.delenv(name, raising=False)
    cores._slots_of_agent.cache_clear()
    yield
    cores._slots_of_agent.cache_clear()


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "HOROVOD_LOCAL_SIZE"])
def test_the_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert cores_per_rank() == 16
    for ranks, share in {"1": 16, "4": 4, "5": 3, "32": 1, "": 16}.items():
        monkeypatch.setenv(name, ranks)
        assert cores_per_rank() == share


def test_the_input_takes_eight_threads_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert input_threads() == InputConfig((64, 64)).threads == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert input_threads() == InputConfig((64, 64)).threads == 4


GROUPS = {
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
    "version 2": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
    "less than a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "more than the cores": ("0::/\n", {"cpu.max": "6400000 100000\n"}, 16),
    "a group above": (
        "0::/pod/trial\n",
        {"pod/cpu.max": "300000 100000", "pod/trial/cpu.max": "max 100000"},
        3,
    ),
    "the host's name of a container's group": ("0::/docker/1f\n", {"cpu.max": "400000 100000"}, 4),
    "version 1": (
        "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        6,
    ),
    "version 1 without a limit": (
        "3:cpu,cpuacct:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        16,
    ),
    "no control groups": ("", {}, 16),
}


@pytest.mark.parametrize("case", GROUPS)
def test_quotas_of_control_groups_count(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    listed, files, expected = GROUPS[case]
    (tmp_path / "cgroup").write_text(listed)
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert usable_cores(tmp_path / "cgroup", tmp_path / "groups") == expected


def on_agent(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    """Make this process a task of agent node-1, of which the master answers this."""
    asked: list[str] = []

    def request(*, path: str, **_: Any) -> Any:
        asked.append(path)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status_code=200, json=lambda: {"agent": answer})

    info = SimpleNamespace(agent_id="node-1", slot_ids=[0, 1])
    monkeypatch.setenv("DET_AGENT_ID", "node-1")
    monkeypatch.setattr(det, "get_cluster_info", lambda: info)
    monkeypatch.setattr(slots, "task_session", lambda _: SimpleNamespace(_do_request=request))
    return asked


@pytest.mark.parametrize("device", [CPU, L4])
def test_the_slots_of_an_agent_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, device: dict[str, str]
) -> None:
    """Also those that no trial has taken yet; ranks of one trial take one slot each."""
    asked = on_agent(monkeypatch, agent("node-1", *[device] * 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores_per_rank() == cores_per_rank() == 4
    assert asked == ["/api/v1/agents/node-1"]


def test_ranks_may_be_more_than_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    on_agent(monkeypatch, agent("node-1", CPU))
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "8")
    assert cores_per_rank() == 2


@pytest.mark.parametrize(
    "failure", [errors.MasterNotFoundException("gone"), ConnectionError("refused")]
)
def test_a_master_that_does_not_answer_is_mentioned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    on_agent(monkeypatch, failure)
    assert cores_per_rank() == 8
    assert f"slots of agent node-1: the master does not say how many: {failure}" in (
        capsys.readouterr().out
    )
