"""How gradients and buffers travel under torch.distributed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from experiments.training.trial import EfficientDetTrial


def test_running_statistics_are_not_sent_before_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(nn.BatchNorm2d(2))
        trial: Any = SimpleNamespace(model=model, hparams=SimpleNamespace(fp16_compression=False))
        assert model.will_sync_module_buffers()
        EfficientDetTrial._configure_gradients(trial)
        assert not model.will_sync_module_buffers()
        model(torch.randn(3, 2, 4, 4)).sum().backward()
    finally:
        dist.destroy_process_group()
