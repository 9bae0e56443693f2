"""Settings of a training process: seed, threads and kernel selection."""

import os

import torch

from experiments.runtime.devices import allow_tf32


def default_threads() -> int:
    """Return this rank's share of the machine's cores, as a number of threads."""
    # Set by torchrun (also on a cluster) and by horovodrun.
    local_ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("HOROVOD_LOCAL_SIZE") or "1"
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(local_ranks)))


def prepare_process(seed: int) -> None:
    """Configure torch for training, with the same seed on every rank."""
    torch.manual_seed(seed)
    # If every rank uses all cores, they slow each other down tenfold. torchrun gives each rank one
    # thread; horovodrun does not limit them.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), default_threads()))
    allow_tf32()
    torch.backends.cudnn.benchmark = True  # input shapes are constant
