"""How batches reach a GPU without the host ever waiting for it.

A copy from ordinary memory makes the host wait until the GPU has come to it. One from page-locked
memory is only queued. That memory is torch's, which does not give it to anybody else before the
copies that were queued from it are done; nor the memory on the GPU, which belongs to the stream
that the batch is loaded in.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Batch = dict[str, Tensor]

# What only the host asks for: it would have to wait for a GPU to read it back.
ON_HOST = frozenset({"image_id", "box_count"})


def input_thread(name: str, device: torch.device) -> ThreadPoolExecutor:
    """Create a thread that prepares batches for a device."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, name)
    # Every thread starts on the first GPU, and would open a context there to lock memory.
    return ThreadPoolExecutor(1, name, initializer=torch.cuda.set_device, initargs=(device,))


def stage(batch: Batch, device: torch.device) -> Batch:
    """Put what a GPU is to get into page-locked memory; called in the input's threads."""
    if device.type != "cuda":
        return batch
    return {
        name: tensor if name in ON_HOST else tensor.pin_memory() for name, tensor in batch.items()
    }


def send(batch: Batch, device: torch.device) -> Batch:
    """Queue the copies of a staged batch, in the current stream."""
    return {
        name: tensor if name in ON_HOST else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def one_ahead(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Stage each batch in a thread, while the one before it is in use."""

    def following() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else stage(batch, device)

    with input_thread("staging", device) as thread:
        future = thread.submit(following)
        while (batch := future.result()) is not None:
            future = thread.submit(following)
            yield batch
