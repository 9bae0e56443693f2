"""Measures an all-reduce among hosts, one process a host, and prints a line of JSON.

NCCL where every host has a GPU, else Gloo. Takes RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from
the environment, and ADDRESS, this host's own.
"""

import json
import os
import time
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

MEGABYTES = 64
REPEATS = 5


def main() -> None:
    """Print backend, seconds of one all-reduce, and the bus bandwidth in GB/s."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == os.environ["ADDRESS"] for address in addresses):
            # Otherwise Gloo takes the host name's address, which may be a loopback one.
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    ranks = dist.get_world_size()
    ones = torch.ones(MEGABYTES * 1024 * 1024 // 4, device=device)
    dist.all_reduce(ones)
    right = bool((ones == ranks).all())
    dist.barrier()
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(ones)
    dist.barrier()
    if gpus:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / REPEATS
    # What each link carries of it (NCCL's definition of bus bandwidth).
    bandwidth = MEGABYTES * 1024**2 * 2 * (ranks - 1) / ranks / seconds / 1e9
    print(
        json.dumps(
            {
                "backend": backend,
                "ranks": ranks,
                "right": right,
                "seconds": round(seconds, 4),
                "gigabytes_per_second": round(bandwidth, 3),
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
