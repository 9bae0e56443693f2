"""Counts the kernels that torch.compile generates, for a GPU that need not be there."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import metrics
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils._triton import has_triton

from bench.counting.counter import Counts, StepCounter

# What Inductor asks of the GPU that it generates code for: an H100.
_H100 = SimpleNamespace(
    **{"name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132},
    **{"total_memory": 80 << 30, "L2_cache_size": 50 << 20, "warp_size": 32},
    **{"regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048},
    **{"max_threads_per_block": 1024, "shared_memory_per_block_optin": 232448},
)


class _Generated(Exception):  # noqa: N818 (no error)
    """Ends a compilation when its code has been generated."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts


@contextlib.contextmanager
def counted_compilation(counter: StepCounter) -> Iterator[None]:
    """Let torch.compile generate kernels, and count them instead of running them."""
    compile_function = torch.compile

    def compile_counted(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = compile_function(function, backend=_backend(counter), **options)

        def call(*args: Any, **kwargs: Any) -> Any:
            with _pop_mode_temporarily():  # it compiles nothing where a mode is active
                return compiled(*args, **kwargs)

        return call

    with mock.patch("torch.compile", compile_counted), _mocked_gpu(), _scratch_cache():
        torch._dynamo.reset()
        try:
            yield
        finally:
            torch._dynamo.reset()


@contextlib.contextmanager
def _scratch_cache() -> Iterator[None]:
    """Remove what Inductor keeps, and warns of, whenever a compilation ends early."""
    logger = logging.getLogger("torch._inductor.utils")
    level = logger.level
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
        torch._inductor.config.patch(compile_threads=1),  # others would go on writing there
    ):
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def _mocked_gpu() -> Iterator[None]:
    caches = (has_triton, DeviceProperties.create)
    for cache in caches:
        cache.cache_clear()
    with contextlib.ExitStack() as stack:
        for owner in (torch.cuda, CudaInterface, CudaInterface.Worker):
            for name, value in (
                ("get_device_properties", _H100),
                ("get_device_capability", (_H100.major, _H100.minor)),
                ("current_device", 0),
                ("is_bf16_supported", True),
                ("device_count", 1),
                ("get_compute_capability", 90),
            ):
                if hasattr(owner, name):
                    stack.enter_context(mock.patch.object(owner, name, return_value=value))
        stack.enter_context(mock.patch.object(CudaInterface, "is_available", return_value=True))
        # Part of the names of compiled kernels.
        stack.enter_context(
            mock.patch("torch.utils._triton.triton_hash_with_backend", return_value="counted")
        )
        yield
    for cache in caches:
        cache.cache_clear()


def _backend(counter: StepCounter) -> Callable[[fx.GraphModule, Sequence[Any]], Any]:
    def inner(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        (output,) = graph.graph.find_nodes(op="output")
        results = [
            each.meta["val"] if isinstance(each, fx.Node) else each for each in output.args[0]
        ]
        counts = _generated(graph, inputs, options)

        def run(given: list[Any]) -> list[Any]:
            given.clear()
            counter.add(counts)
            with counter.paused():
                return [_same_form(each) if isinstance(each, Tensor) else each for each in results]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        with _without_values():
            return compile_fx(graph, inputs, inner_compile=inner)

    return backend


def _without_values() -> contextlib.AbstractContextManager[Any]:
    """Keep Inductor from what needs a constant's values or the code of an earlier process."""
    return torch._inductor.config.patch(
        force_disable_caches=True, joint_graph_constant_folding=False
    )


def _same_form(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _generated(graph: fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Counts:
    """Return the launches and bytes of a graph's code."""

    def generate(lowering: GraphLowering) -> Any:
        before = metrics.generated_kernel_count
        lowering.codegen()
        launches = metrics.generated_kernel_count - before
        total_bytes, *_ = lowering.count_bytes()
        raise _Generated(Counts(launches, total_bytes))

    with mock.patch.object(GraphLowering, "compile_to_module", generate), _without_values():
        try:
            compile_fx_inner(graph, inputs, **options)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, _Generated):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            return cause.counts
    raise RuntimeError("nothing was generated")
