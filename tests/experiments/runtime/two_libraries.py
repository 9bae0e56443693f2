"""Run by each rank in test_torch_group: Horovod's collectives and torch.distributed's, mixed."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.runtime.communication import (
    Communicator,
    HorovodCommunicator,
    communicator,
    start_distributed,
)

STEPS, SUMS, GRADIENTS = 12, 8, 5


def mix(hvd: Any, group: Communicator, delays: random.Random) -> list[Tensor]:
    """Sum in the group while gradients travel, which every rank sends in its own order."""
    results = []
    for step in range(STEPS):
        names = list(range(GRADIENTS))
        delays.shuffle(names)
        handles = {}
        for number in range(SUMS):
            time.sleep(delays.random() * 0.004)
            if number < GRADIENTS:
                name = names[number]
                gradient = torch.full((300,), float(step + name + group.rank))
                handles[name] = hvd.allreduce_async(gradient, op=hvd.Sum, name=f"gradient.{name}")
            results.append(group.all_reduce_sum(torch.tensor([step * 10.0 + number, group.rank])))
        results += [hvd.synchronize(handles[name]) for name in range(GRADIENTS)]
    return results


def step(hvd: Any, ranks: HorovodCommunicator, held: bool) -> tuple[int, dict[str, Tensor]]:
    """Take two optimizer steps; gradients sent before the end of a backward pass, and weights."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), named_parameters=model.named_parameters()
    )
    if held:
        ranks.hold_gradients(optimizer)
    sent = 0
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(4, 3) * (ranks.rank + 1)).square().sum().backward()
        sent += sum(handle is not None for handle, _ in optimizer._handles.values())
        optimizer.step()
    return sent, model.state_dict()


def main() -> None:
    """Save this rank's results."""
    start_distributed()
    ranks = communicator()
    assert isinstance(ranks, HorovodCommunicator)
    import horovod.torch as hvd

    group = ranks.open_torch_group(torch.device("cpu"))
    results = {
        "ranks": (group.rank, group.size, group.local_rank),
        "mixed": mix(hvd, group, random.Random(ranks.rank)),
        "at once": step(hvd, ranks, held=False),
        "held": step(hvd, ranks, held=True),
        "launcher": type(communicator()).__name__,
    }
    torch.save(results, Path(sys.argv[1]) / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main()
