"""What each rank runs for test_fused_sgd: float16's steps, fused and not, one rank overflowing."""

import sys
from pathlib import Path

import torch
from determined import pytorch
from torch import Tensor, nn

from experiments.runtime.communication import communicator, start_distributed
from experiments.settings.hparams import parse_hparams
from experiments.training.optimization import build_optimizer

STEPS = 6
SKIPPED = {0, 1, 3}


def train(context: pytorch.PyTorchTrialContext, opt: str, rank: int) -> Tensor:
    """The weights after STEPS steps, SKIPPED of which overflow on the last rank alone."""
    torch.manual_seed(0)
    scaler = context.wrap_scaler(torch.amp.GradScaler("cpu", init_scale=2.0**10))
    model = context.wrap_model(nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 3)))
    optimizer = context.wrap_optimizer(
        build_optimizer(model, parse_hparams({"opt": opt, "lr": 0.05}))
    )
    for step in range(STEPS):
        context._current_batch_idx = step  # as the trainer counts
        torch.manual_seed(100 * step + rank)
        loss = model(torch.randn(4, 8)).square().mean()
        if step in SKIPPED and rank == communicator().size - 1:
            loss = loss * float("inf")
        context.backward(scaler.scale(loss))
        context.step_optimizer(
            optimizer, lambda _, one=optimizer, s=scaler: s.unscale_(one), scaler=scaler
        )
        scaler.update()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main() -> None:
    """Train with and without the fused kernel and save both outcomes."""
    torch.set_num_threads(1)
    distributed = start_distributed()
    rank = communicator().rank
    found = {}
    for opt in ("momentum", "fusedmomentum"):
        with pytorch.init(
            hparams={"global_batch_size": 8},
            exp_conf={"searcher": {"name": "single", "metric": "loss"}},
            distributed=distributed,
            enable_tensorboard_logging=False,
        ) as context:
            found[opt] = train(context, opt, rank)
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")


if __name__ == "__main__":
    main()
