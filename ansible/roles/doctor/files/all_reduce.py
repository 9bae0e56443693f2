"""Measures an all-reduce between hosts, one process per host, and prints a line of JSON.

Uses NCCL where every host has a GPU, otherwise Gloo. Reads RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT, ADDRESS (this host's own address) and INTERFACE (that of trials; empty if Horovod would
find none) from the environment.
"""

import json
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from experiments.runtime.interface import use_trial_interface

MEGABYTES = 64
REPEATS = 5


def choose_interface() -> None:
    """Use the network interface that a trial would use, as a trial does."""
    found = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == os.environ["ADDRESS"] for address in addresses)
    ]
    # Without any, Gloo uses the address of the host name, which may be a loopback address.
    wanted = os.environ["INTERFACE"] or next(iter(found), "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "interface")
        file.write_text(wanted)
        use_trial_interface(file=file)


def main() -> None:
    """Print backend, seconds of one all-reduce, and the bus bandwidth in GB/s."""
    choose_interface()
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    ranks = dist.get_world_size()
    ones = torch.ones(MEGABYTES * 1024 * 1024 // 4, device=device)
    dist.all_reduce(ones)
    correct = bool((ones == ranks).all())
    dist.barrier()
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(ones)
    dist.barrier()
    if gpus:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / REPEATS
    # The traffic of each link (NCCL's definition of bus bandwidth).
    bandwidth = MEGABYTES * 1024**2 * 2 * (ranks - 1) / ranks / seconds / 1e9
    print(
        json.dumps(
            {
                "backend": backend,
                "ranks": ranks,
                "correct": correct,
                "seconds": round(seconds, 4),
                "gigabytes_per_second": round(bandwidth, 3),
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
