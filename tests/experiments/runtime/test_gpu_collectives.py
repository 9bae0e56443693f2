"""Which library carries a GPU's collectives, run without one: under fake tensors and stand-ins."""

import os
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments.runtime import communication
from experiments.training.trial import EfficientDetTrial

CUDA = torch.device("cuda", 0)


def test_collectives_of_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL is chosen where there is a GPU, and takes tensors on this rank's GPU alone."""
    started = {}
    distributed = torch.distributed
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("HOROVOD_SIZE", "USE_HOROVOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        distributed, "init_process_group", lambda backend: started.update(backend=backend)
    )
    monkeypatch.setattr(
        communication.core.DistributedContext, "from_torch_distributed", lambda **_: None
    )
    with mock.patch.dict(os.environ):  # what it sets must not reach other tests' processes
        communication.start_distributed()
        assert os.environ["USE_TORCH_DISTRIBUTED"] == "1"
    assert started == {"backend": "nccl"}
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_backend", lambda: "nccl")
    reduced = []
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: reduced.append(tensor.device))
    with FakeTensorMode():
        total = communication.TorchCommunicator().all_reduce_sum(torch.ones(3))
    assert reduced == [CUDA]
    assert total.device.type == "cpu"


def test_horovods_sum_on_a_gpu() -> None:
    """There Horovod's own wait is used: a GPU's collective takes no processor's time."""
    hvd: Any = SimpleNamespace(
        **{name: lambda: 0 for name in ("rank", "size", "local_rank")},
        Sum="sum",
        allreduce_async=lambda tensor, **_: tensor,
        poll=lambda handle: pytest.fail("polled"),
        synchronize=lambda handle: handle,
    )
    with FakeTensorMode():
        total = communication.HorovodCommunicator(hvd).all_reduce_sum(torch.ones(3, device=CUDA))
        assert total.device == CUDA


@pytest.mark.parametrize(("device", "backend"), [(CUDA, "nccl"), (torch.device("cpu"), "gloo")])
def test_two_communicators_of_nccl_take_turns(
    device: torch.device, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU Horovod sends gradients when the statistics of the backward pass are done."""
    started: dict[str, Any] = {}
    distributed = torch.distributed
    monkeypatch.setattr(
        distributed, "init_process_group", lambda name, **_: started.update(backend=name)
    )
    monkeypatch.setattr(communication.atexit, "register", lambda function: None)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(distributed, "get_backend", lambda: started["backend"])
    hvd: Any = SimpleNamespace(
        **{name: lambda: 0 for name in ("rank", "local_rank")},
        **{name: lambda: 1 for name in ("size", "cross_size")},
        broadcast_object=lambda value, name: value,
    )
    optimizer = mock.Mock(backward_passes_per_step=1)
    ranks = communication.HorovodCommunicator(hvd)
    trial: Any = SimpleNamespace(
        communicator=ranks,
        device=device,
        optimizer=optimizer,
        hparams=SimpleNamespace(sync_bn_with_horovod=False),
    )
    trial.step_communicator = EfficientDetTrial._open_step_communicator(trial)
    assert started == {"backend": backend}
    assert isinstance(trial.step_communicator, communication.TorchCommunicator)
    EfficientDetTrial._order_collectives(trial)
    held = [mock.call(2)] if device == CUDA else []
    assert optimizer.set_backward_passes_per_step.mock_calls == held

    trial.hparams.sync_bn_with_horovod = True
    assert EfficientDetTrial._open_step_communicator(trial) is ranks
    trial.step_communicator = ranks
    EfficientDetTrial._order_collectives(trial)
    assert optimizer.set_backward_passes_per_step.mock_calls == held
