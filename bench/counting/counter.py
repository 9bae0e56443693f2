"""Counts launches, bytes, host waits and collectives, as operations are dispatched."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten

# Allocate, or return a view although their schemas do not say so.
_FREE = {
    *(aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default),
    *(aten.new_empty.default, aten.new_empty_strided.default),
    *(aten._unsafe_view.default, aten.lift_fresh.default, aten.set_.source_Storage),
}
_COPIES = {aten._to_copy.default, aten.copy_.default}


def _per_channel(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return float32 tensors of one number per channel."""
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(count))


# PyTorch has no fake form of these.
_WITHOUT_SHAPES: dict[Any, Callable[..., Any]] = {
    aten.batch_norm_stats.default: lambda x, *_: _per_channel(x, 2),
    aten.batch_norm_elemt.default: lambda x, *_: torch.empty_like(x),
    aten.batch_norm_backward_reduce.default: lambda _, x, *__: _per_channel(x, 4),
    aten.batch_norm_backward_elemt.default: lambda _, x, *__: torch.empty_like(x),
}


@dataclass
class Counts:
    """What a stage of a step asks of a GPU.

    Attributes:
        launches: Operations that run on the GPU; a few of them, such as the backward pass of a
            convolution, launch more than one kernel.
        bytes: Arguments and results of these operations.
        waits: Where the host waits for the GPU: operation and line.
        collectives: Exchanges with the other ranks that the step waits for.
    """

    launches: int = 0
    bytes: int = 0
    waits: list[str] = field(default_factory=list)
    collectives: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.launches + other.launches,
            self.bytes + other.bytes,
            self.waits + other.waits,
            self.collectives + other.collectives,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the counts by name."""
        return dataclasses.asdict(self)


class StepCounter(TorchDispatchMode):
    """Counts the operations on a device named cuda, by stage.

    To be entered within a FakeTensorMode. A value that the host asks for is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, Counts] = {}
        self._stage = "other"
        self._paused = False

    @property
    def current(self) -> Counts:
        """The counts of the stage that is running."""
        return self.stages.setdefault(self._stage, Counts())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count for this stage in the body of a `with` statement."""
        outer, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = outer

    def add(self, counts: Counts) -> None:
        """Add to the stage that is running."""
        self.stages[self._stage] = self.current + counts

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing in the body of a `with` statement."""
        outer, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, and run it on fake tensors."""
        kwargs = kwargs or {}
        if self._paused or func.namespace == "prim":
            return func(*args, **kwargs)
        given = _tensors((args, kwargs))
        if func in {aten._local_scalar_dense.default, aten.nonzero.default} and _on_gpu(given):
            self._count(given)
            self._wait(func)
            return _made_up(func, given[0])
        result = _WITHOUT_SHAPES.get(func, func)(*args, **kwargs)
        tensors = [*given, *_tensors(result)]
        if not _on_gpu(tensors) or func.is_view or func in _FREE:
            return result
        self._count(tensors)
        # Scalars without dimensions are arguments of kernels, and are not copied.
        between = func in _COPIES and len({x.device.type for x in tensors}) > 1
        non_blocking = kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:3])
        if between and not non_blocking:
            self._wait(func)
        return result

    def _count(self, tensors: list[Tensor]) -> None:
        self.current.launches += 1
        # A tensor that an operation changes is read and written, so it counts twice.
        self.current.bytes += sum(map(tensor_bytes, tensors))

    def _wait(self, func: Any) -> None:
        self.current.waits.append(f"{func} in {_own_line()}")


def tensor_bytes(x: Tensor) -> int:
    """Return the bytes of a tensor on a GPU; an expanded one has no more than it stores."""
    if x.device.type != "cuda":
        return 0
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _on_gpu(tensors: list[Tensor]) -> bool:
    return any(x.device.type == "cuda" for x in tensors)


def _made_up(func: Any, x: Tensor) -> Any:
    """Return a value that only a real GPU would know."""
    if func is aten.nonzero.default:
        return x.new_empty((0, x.dim()), dtype=torch.int64)
    if x.dtype == torch.bool:
        return False
    return 0.0 if x.dtype.is_floating_point else 0


def _own_line() -> str:
    """Return the innermost line of this project that is running, or else of a library."""
    frame = sys._getframe(2)
    outermost = frame
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_ROOT) and _ROOT / "bench" not in file.parents:
            relative = file.relative_to(_ROOT)
            if relative.parts[0] in {"model", "experiments"}:
                return f"{relative}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return f"{outermost.f_code.co_filename}:{outermost.f_lineno}"
