"""What ranks say to each other: one interface over one process, torch.distributed and Horovod."""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch
from determined import core, horovod
from torch import Tensor

_POLL_SECONDS = 1e-4

T = TypeVar("T")


class Communicator(Protocol):
    """The collectives that training and evaluation need. Every rank must call them in step."""

    rank: int
    size: int
    local_rank: int

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in rank order; first dimensions may differ."""
        ...

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, as a new tensor."""
        ...

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        ...


class SingleProcess:
    """One process: every collective is the identity."""

    rank = local_rank = 0
    size = 1

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor itself."""
        return [tensor]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor."""
        return tensor.clone()

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Nothing to do."""


class TorchCommunicator:
    """Collectives of torch.distributed's default group (NCCL on GPUs, Gloo on CPUs)."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        on_gpu = torch.distributed.get_backend() == "nccl"
        self._device = torch.device("cuda", self.local_rank) if on_gpu else torch.device("cpu")

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in rank order; first dimensions may differ."""
        mine = tensor.to(self._device).contiguous()
        length = torch.tensor([mine.shape[0]], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, length)
        rows = [int(each) for each in lengths]
        # Collectives want equal shapes: pad to the longest, cut after.
        padded = mine.new_zeros((max(rows), *mine.shape[1:]))
        padded[: mine.shape[0]] = mine
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, padded)
        return [each[:count].to(tensor.device) for each, count in zip(gathered, rows, strict=True)]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, as a new tensor."""
        total = tensor.to(self._device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


class HorovodCommunicator:
    """Collectives of Horovod (NCCL on GPUs, Gloo on CPUs)."""

    def __init__(self, hvd: Any) -> None:
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank = hvd.local_rank()

    @staticmethod
    def _name(kind: str, tensor: Tensor) -> str:
        """A name for a collective. Ours follow each other, so a name may come again.

        Horovod keeps what the ranks agreed on by name and shape; names that never come again, or
        come with another shape, would push the gradients' agreements out of its cache.
        """
        return f"efficientdet.{kind}.{tensor.dtype}.{'x'.join(map(str, tensor.shape))}"

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in rank order; first dimensions may differ."""
        lengths = self._hvd.allgather(torch.tensor([tensor.shape[0]]), name="efficientdet.lengths")
        rows = [int(each) for each in lengths]
        joined = self._hvd.allgather(
            tensor.contiguous(), name=f"efficientdet.rows.{tensor.dtype}.{tuple(tensor.shape[1:])}"
        )
        return list(joined.split(rows))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, as a new tensor."""
        handle = self._hvd.allreduce_async(tensor, op=self._hvd.Sum, name=self._name("sum", tensor))
        # Horovod waits by yielding in a loop. Where ranks share cores, that takes them from the
        # threads that do the work, and synchronized batch norm waits some hundred times a batch.
        while not (tensor.is_cuda or self._hvd.poll(handle)):
            time.sleep(_POLL_SECONDS)
        result: Tensor = self._hvd.synchronize(handle)
        return result

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        for tensor in tensors:
            self._hvd.broadcast_(tensor, root_rank=0, name=self._name("broadcast", tensor))


def start_distributed() -> core.DistributedContext | None:
    """Join the ranks that a launcher started off the cluster, and tell Determined of them.

    The launcher is known by its environment: torchrun sets RANK and WORLD_SIZE, horovodrun sets
    HOROVOD_RANK. On a cluster Determined does this itself.

    Returns:
        Determined's context of the ranks; None for one process.

    Raises:
        RuntimeError: a launcher started this process, and its library is not installed.
    """
    if int(os.environ.get("HOROVOD_SIZE", "1")) > 1:
        if importlib.util.find_spec("horovod") is None:
            raise RuntimeError(
                "horovodrun started this process, and Horovod is not installed here: "
                "run `make horovod`, or start it with torchrun"
            )
        # Determined's own handle on Horovod, which wants to be told the framework first.
        hvd = horovod.hvd
        hvd.require_horovod_type("torch", "it trains a PyTorchTrial")
        hvd.init()
        os.environ["USE_HOROVOD"] = "1"  # how Determined's trainer learns of it
        return core.DistributedContext.from_horovod(hvd, chief_ip=os.environ.get("DET_CHIEF_IP"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        os.environ["USE_TORCH_DISTRIBUTED"] = "1"
        return core.DistributedContext.from_torch_distributed(
            chief_ip=os.environ.get("DET_CHIEF_IP", os.environ.get("MASTER_ADDR"))
        )
    return None


def chief_decides(distributed: core.DistributedContext | None, compute: Callable[[], T]) -> T:
    """What the first rank computes, on every rank; an error there is raised on every rank.

    For what only the first rank's machine has, such as the folder of a run.
    """
    answer: T | Exception | None = None
    if distributed is None or distributed.get_rank() == 0:
        try:
            answer = compute()
        except Exception as error:
            answer = error
    if distributed is not None:
        answer = distributed.broadcast(answer)
    if isinstance(answer, Exception):
        raise answer
    return cast(T, answer)


def communicator() -> Communicator:
    """The communicator that fits how this process was started and initialised."""
    if os.environ.get("USE_HOROVOD"):
        import horovod.torch as hvd

        if hvd.is_initialized() and hvd.size() > 1:
            return HorovodCommunicator(hvd)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return TorchCommunicator()
    return SingleProcess()
