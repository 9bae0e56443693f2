"""Settings of a training process: seed, threads and kernel selection."""

import os

import torch

from experiments.runtime.cores import cores_per_rank
from experiments.runtime.devices import allow_tf32


def prepare_process(seed: int) -> None:
    """Configure torch for training, with the same seed on every rank."""
    torch.manual_seed(seed)
    # If every rank uses all cores, they slow each other down tenfold. torchrun gives each rank one
    # thread; horovodrun does not limit them.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank()))
    allow_tf32()
    torch.backends.cudnn.benchmark = True  # input shapes are constant
