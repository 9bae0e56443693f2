"""A trial that should be on a GPU and sees none stops; the master's answers are stand-ins."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from determined.common.api import bindings, errors

from experiments.runtime import slots
from experiments.runtime.agents import gpu_slots
from experiments.runtime.gpus import DeviceError
from experiments.runtime.slots import require_own_gpu
from tests.agents import CPU, H100, L4, agent


class Master:
    """Stands in for the session of the trial."""

    def __init__(self, *agents: dict[str, Any], failure: Exception | None = None) -> None:
        self.agents, self.failure, self.asked = agents, failure, 0

    def _do_request(self, *, path: str, **_: Any) -> Any:
        assert path == "/api/v1/agents"
        self.asked += 1
        if self.failure:
            raise self.failure
        return SimpleNamespace(status_code=200, json=lambda: {"agents": list(self.agents)})


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def check(monkeypatch: pytest.MonkeyPatch, master: Master, name: str, slot_ids: list[int]) -> None:
    monkeypatch.setattr(slots, "task_session", lambda info: master)
    info: Any = SimpleNamespace(agent_id=name, slot_ids=slot_ids)
    require_own_gpu(info)


def test_a_slot_that_is_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    master = Master(agent("node-1", L4, H100), agent("node-2", CPU, pool="cpus"))
    with pytest.raises(DeviceError, match=r"1 GPU slot\(s\) of agent node-1 \(NVIDIA H100 80GB"):
        check(monkeypatch, master, "node-1", [1])
    with pytest.raises(DeviceError, match=r"2 GPU slot\(s\).*H100 80GB HBM3, NVIDIA L4.*sees no"):
        check(monkeypatch, master, "node-1", [0, 1])


def test_a_gpu_that_is_lost_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    instance = {"type": "TYPE_CUDA", "brand": "MIG 1g.10gb"}
    master = Master(agent("node-1", H100, H100), agent("node-2", instance, instance))
    check(monkeypatch, master, "node-1", [1])
    with pytest.raises(DeviceError, match=r"2 GPU slot\(s\) of agent node-1 .* sees 1 GPU\(s\)"):
        check(monkeypatch, master, "node-1", [0, 1])
    with pytest.raises(
        DeviceError, match=r"one instance of MIG in a process: set resources\.slots"
    ):
        check(monkeypatch, master, "node-2", [0, 1])


def test_a_processor_in_a_pool_with_gpus_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    master = Master(agent("node-1", H100), agent("node-2", CPU), agent("node-3", CPU, pool="cpus"))
    with pytest.raises(DeviceError, match=r"processors of agent node-2, but agent\(s\) node-1"):
        check(monkeypatch, master, "node-2", [0])
    check(monkeypatch, master, "node-3", [0])
    drained = Master(agent("node-1", H100, enabled=False), agent("node-2", CPU))
    check(monkeypatch, drained, "node-2", [0])


@pytest.mark.parametrize("reason", ["a GPU", "hidden", "no slot", "unknown agent"])
def test_other_trials_go_on(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    master = Master(agent("node-1", H100))
    if reason == "a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if reason == "hidden":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    name = "node-9" if reason == "unknown agent" else "node-1"
    check(monkeypatch, master, name, [] if reason == "no slot" else [0])
    assert master.asked == (reason == "unknown agent")


@pytest.mark.parametrize(
    "failure", [errors.MasterNotFoundException("gone"), ConnectionError("refused")]
)
def test_a_master_that_does_not_answer_is_mentioned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    check(monkeypatch, Master(failure=failure), "node-1", [0])
    assert (
        f"0 GPU(s) for 1 slot(s); the master does not say why: {failure}" in capsys.readouterr().out
    )


def test_the_kinds_are_those_of_the_api() -> None:
    found = bindings.v1Agent.from_json(agent("node-1", CPU, L4))
    assert gpu_slots(found) == {1: "NVIDIA L4"}
