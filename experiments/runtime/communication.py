"""Collectives between ranks: one interface to torch.distributed, Horovod and a single process."""

import atexit
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
    """The collectives that training and evaluation need.

    All ranks must call the same ones in the same order.
    """

    rank: int
    size: int
    local_rank: int

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order; first dimensions may differ."""
        ...

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks as a new tensor."""
        ...

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank 0's, in place."""
        ...


class SingleProcess:
    """A single process, in which every collective is the identity."""

    rank = local_rank = 0
    size = 1

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return a list of the tensor itself."""
        return [tensor]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return a copy of the tensor."""
        return tensor.clone()

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Do nothing."""


class TorchCommunicator:
    """Collectives of torch.distributed's default group: NCCL on GPUs, Gloo on CPUs."""

    def __init__(self, local_rank: int | None = None) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        # torchrun sets it; another launcher's rank has to be given.
        from_torchrun = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_rank = from_torchrun if local_rank is None else local_rank
        on_gpu = torch.distributed.get_backend() == "nccl"
        self._device = torch.device("cuda", self.local_rank) if on_gpu else torch.device("cpu")

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order; first dimensions may differ."""
        local = tensor.to(self._device).contiguous()
        length = torch.tensor([local.shape[0]], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, length)
        rows = [int(each) for each in lengths]
        # all_gather needs equal shapes: pad to the longest, and cut afterwards.
        padded = local.new_zeros((max(rows), *local.shape[1:]))
        padded[: local.shape[0]] = local
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, padded)
        return [each[:count].to(tensor.device) for each, count in zip(gathered, rows, strict=True)]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks as a new tensor."""
        total = tensor.to(self._device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank 0's, in place."""
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


class HorovodCommunicator:
    """Collectives of Horovod: NCCL on GPUs, Gloo on CPUs."""

    def __init__(self, hvd: Any) -> None:
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank = hvd.local_rank()

    @staticmethod
    def _name(kind: str, tensor: Tensor) -> str:
        """Return the name of a collective; only one is in flight at a time, so names may repeat.

        Horovod caches the ranks' negotiated responses by name and shape. Names that are used only
        once, or with varying shapes, would evict the gradients' responses from its cache.
        """
        return f"efficientdet.{kind}.{tensor.dtype}.{'x'.join(map(str, tensor.shape))}"

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order; first dimensions may differ."""
        lengths = self._hvd.allgather(torch.tensor([tensor.shape[0]]), name="efficientdet.lengths")
        rows = [int(each) for each in lengths]
        joined = self._hvd.allgather(
            tensor.contiguous(), name=f"efficientdet.rows.{tensor.dtype}.{tuple(tensor.shape[1:])}"
        )
        return list(joined.split(rows))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks as a new tensor."""
        handle = self._hvd.allreduce_async(tensor, op=self._hvd.Sum, name=self._name("sum", tensor))
        # Horovod's own wait is a busy loop. If ranks share cores, it takes CPU time from the
        # threads that do the work, and synchronized batch norm waits about a hundred times a batch.
        while not (tensor.is_cuda or self._hvd.poll(handle)):
            time.sleep(_POLL_SECONDS)
        result: Tensor = self._hvd.synchronize(handle)
        return result

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank 0's, in place."""
        for tensor in tensors:
            self._hvd.broadcast_(tensor, root_rank=0, name=self._name("broadcast", tensor))

    def open_torch_group(self, device: torch.device) -> TorchCommunicator:
        """Open a process group of torch.distributed over Horovod's ranks; all ranks must call this.

        Horovod starts collectives once per cycle, which is right for gradients and too slow for
        collectives that the next operation waits for.

        Args:
            device: That this rank computes on: NCCL for a GPU, otherwise Gloo.
        """
        distributed = torch.distributed
        # Between hosts Determined cannot do without this variable either.
        address = os.environ["DET_CHIEF_IP"] if self._hvd.cross_size() > 1 else "127.0.0.1"
        port = 0  # any that is free
        store = None
        if self.rank == 0:
            store = distributed.TCPStore(
                address, port, self.size, is_master=True, wait_for_workers=False
            )
            address, port = store.host, store.port
        address, port = self._hvd.broadcast_object((address, port), name="efficientdet.store")
        if store is None:
            store = distributed.TCPStore(address, port, self.size, wait_for_workers=False)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        if backend == "gloo":
            # Otherwise Gloo's threads may still be running when Python exits, which aborts it.
            # NCCL's end would wait for the other ranks, which may have failed.
            atexit.register(distributed.destroy_process_group)
        return TorchCommunicator(self.local_rank)

    @staticmethod
    def hold_gradients(optimizer: Any) -> None:
        """Let Horovod's optimizer send gradients after the backward pass, not during it.

        Two NCCL communicators block each other if their kernels start in different orders on two
        GPUs and there is no room for both. NCCL_LAUNCH_ORDER_IMPLICIT demands one order on the
        host, which Horovod's thread does not keep. This makes them take turns: Horovod's kernels
        wait for what the GPU was given before, which is all of the pass's statistics, and the
        optimizer waits for the gradients before the next pass starts.
        """
        optimizer.set_backward_passes_per_step(optimizer.backward_passes_per_step + 1)


def start_distributed() -> core.DistributedContext | None:
    """Initialise communication between the ranks that a launcher started without a cluster.

    The launcher is detected from its environment variables: torchrun sets WORLD_SIZE, horovodrun
    sets HOROVOD_SIZE. On a cluster Determined does this itself.

    Returns:
        Determined's context of the ranks; None for a single process.

    Raises:
        RuntimeError: horovodrun started this process, but Horovod is not installed.
    """
    if int(os.environ.get("HOROVOD_SIZE", "1")) > 1:
        if importlib.util.find_spec("horovod") is None:
            raise RuntimeError(
                "horovodrun started this process, but Horovod is not installed in this "
                "environment: install it with `make horovod`, or use torchrun"
            )
        # Determined's wrapper of Horovod requires the framework to be set before init.
        hvd = horovod.hvd
        hvd.require_horovod_type("torch", "it trains a PyTorchTrial")
        hvd.init()
        # Determined's trainer reads these, and an inherited one would choose another library.
        os.environ.pop("USE_TORCH_DISTRIBUTED", None)
        os.environ["USE_HOROVOD"] = "1"
        return core.DistributedContext.from_horovod(hvd, chief_ip=os.environ.get("DET_CHIEF_IP"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        os.environ.pop("USE_HOROVOD", None)
        os.environ["USE_TORCH_DISTRIBUTED"] = "1"
        return core.DistributedContext.from_torch_distributed(
            chief_ip=os.environ.get("DET_CHIEF_IP", os.environ.get("MASTER_ADDR"))
        )
    return None


def compute_on_chief(distributed: core.DistributedContext | None, compute: Callable[[], T]) -> T:
    """Call a function on rank 0, and return its result or raise its exception on every rank.

    For what only rank 0's machine has, such as the folder of a run.
    """
    result: T | Exception | None = None
    if distributed is None or distributed.get_rank() == 0:
        try:
            result = compute()
        except Exception as error:
            result = error
    if distributed is not None:
        result = distributed.broadcast(result)
    if isinstance(result, Exception):
        raise result
    return cast(T, result)


def communicator() -> Communicator:
    """Return the communicator for the library that this process has initialised."""
    if os.environ.get("USE_HOROVOD"):
        import horovod.torch as hvd

        if hvd.is_initialized() and hvd.size() > 1:
            return HorovodCommunicator(hvd)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return TorchCommunicator()
    return SingleProcess()
