"""Settings of a training process: seeds, threads and the speed of kernels."""

import os

import torch

from experiments.runtime.devices import allow_tf32


def default_threads() -> int:
    """CPU threads of one rank: the cores of this process over the ranks that share the machine."""
    # torchrun (Determined's launcher too) and horovodrun say how many ranks the machine has.
    local_ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("HOROVOD_LOCAL_SIZE") or "1"
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(local_ranks)))


def prepare_process(seed: int) -> None:
    """Set torch up for training, with the same seed on every rank."""
    torch.manual_seed(seed)
    # Ranks that each use all cores of a machine slow each other tenfold. torchrun leaves each rank
    # one thread, horovodrun sets nothing.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), default_threads()))
    allow_tf32()
    torch.backends.cudnn.benchmark = True  # shapes never change
