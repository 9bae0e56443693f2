"""Run by each rank in test_communication: calls every collective and saves the results."""

import sys
from pathlib import Path

import torch

from experiments.runtime.communication import communicator, start_distributed


def main() -> None:
    """Call each collective once and save this rank's results."""
    start_distributed()
    ranks = communicator()
    rows = torch.arange(3 * ranks.rank, dtype=torch.int64).reshape(-1, 3) + 10 * ranks.rank
    buffers = [torch.full((2, 2), float(ranks.rank)), torch.tensor(ranks.rank)]
    ranks.broadcast_(buffers)
    value = torch.tensor([1.5, 2.0**ranks.rank], dtype=torch.float64)
    results = {
        "size": ranks.size,
        "local": ranks.local_rank,
        "gathered": ranks.all_gather(rows),
        "empty": ranks.all_gather(torch.empty(0, 6)),
        "sum": ranks.all_reduce_sum(value),
        "summand": value,
        "broadcast": buffers,
    }
    torch.save(results, Path(sys.argv[1]) / f"{ranks.rank}.pt")
    if torch.distributed.is_initialized():
        # Otherwise Gloo's threads may still be running when Python exits, which aborts the process.
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
