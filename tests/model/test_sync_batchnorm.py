"""Statistics, gradients and running statistics of two ranks against one rank with all images."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from model import build_detector, convert_sync_batchnorm

SPLITS = (4, 7)  # images of the first rank, of 8


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        BatchNormAct2d(6),
        nn.Conv2d(6, 4, 3, bias=False),
        nn.BatchNorm2d(4, momentum=None),
    )


def images() -> Tensor:
    return torch.randn(8, 3, 9, 7, generator=torch.Generator().manual_seed(1)) + 1


def weighted_loss(output: Tensor, samples: slice) -> Tensor:
    weights = torch.randn(8, *output.shape[1:], generator=torch.Generator().manual_seed(2))
    return (output * weights[samples]).sum()


def train(model: nn.Module, samples: slice) -> dict[str, Tensor]:
    """Running statistics after two steps, and the second step's outputs and gradients."""
    x = images()[samples].requires_grad_()
    for _ in range(2):
        model.zero_grad()
        x.grad = None
        output = model(x)
        weighted_loss(output, samples).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        "output": output.detach(),
        "x": x.grad,
        **gradients,
        **model.state_dict(prefix="after."),
    }


def run_rank(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )

    def all_reduce_sum(x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    for first in SPLITS:
        samples = slice(0, first) if rank == 0 else slice(first, 8)
        results = train(convert_sync_batchnorm(network(), all_reduce_sum), samples)
        torch.save(results, folder / f"{first}-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    mp.spawn(run_rank, (tmp_path,), nprocs=2)
    expected = train(network(), slice(0, 8))
    for first in SPLITS:
        ranks = [torch.load(tmp_path / f"{first}-{rank}.pt") for rank in range(2)]
        for name, value in expected.items():
            if name.startswith("after."):
                parts = [rank[name] for rank in ranks]
            elif name in {"output", "x"}:
                parts = [torch.cat([rank[name] for rank in ranks])]
            else:
                parts = [ranks[0][name] + ranks[1][name]]
            for part in parts:
                scale = max(float(value.abs().max()), 1.0)
                torch.testing.assert_close(part, value, rtol=0, atol=1e-5 * scale, msg=name)


def test_variance_far_from_zero() -> None:
    # Moments in float32 would lose all its digits.
    x = torch.randn(4, 3, 9, 7) + 3000
    synced = convert_sync_batchnorm(nn.BatchNorm2d(3), lambda moments: moments)
    torch.testing.assert_close(synced(x), nn.BatchNorm2d(3)(x), rtol=0, atol=2e-3)


def test_one_rank_is_plain_batch_norm_and_names_stay() -> None:
    torch.manual_seed(0)
    plain = build_detector("tiny")
    synced = convert_sync_batchnorm(copy.deepcopy(plain), lambda x: x)
    assert not any(type(module) in {nn.BatchNorm2d, BatchNormAct2d} for module in synced.modules())
    assert list(synced.state_dict()) == list(plain.state_dict())
    batch = torch.randn(4, 3, 128, 128)
    for mode in (True, False):
        plain.train(mode)
        synced.train(mode)
        for expected, actual in zip(plain(batch), synced(batch), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(synced.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_copy_shares_the_connection() -> None:
    class Unpicklable:
        def __call__(self, x: Tensor) -> Tensor:
            return x

        def __deepcopy__(self, memo: dict) -> None:
            raise TypeError("a process group cannot be copied")

    copied = copy.deepcopy(convert_sync_batchnorm(network(), Unpicklable()))
    assert copied(images()).isfinite().all()


def test_norms_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="without weights"):
        convert_sync_batchnorm(nn.BatchNorm2d(3, affine=False), lambda x: x)
