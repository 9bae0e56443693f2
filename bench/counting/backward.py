"""The backward pass in Python: autograd's own engine needs a real GPU."""

import heapq
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge


def run_backward(  # noqa: PLR0917
    outputs: Sequence[Tensor | GradientEdge],
    grads: Sequence[Tensor | None],
    keep_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor | GradientEdge] = (),
    allow_unreachable: bool = False,
    accumulate_grad: bool = False,
) -> tuple[Tensor | None, ...]:
    """Do what torch.autograd.graph._engine_run_backward does, without hooks.

    Returns:
        The gradients of the inputs; without inputs none, and leaves have theirs in `grad`.
    """
    assert not create_graph
    del keep_graph, allow_unreachable  # nothing is freed or refused
    wanted = {_edge(x): number for number, x in enumerate(inputs)}
    found: list[Tensor | None] = [None] * len(inputs)
    arrived: dict[Any, list[Tensor | None]] = {}
    roots = [_edge(output) for output in outputs]
    waiting, above = _dependencies([node for node, _ in roots])
    needed = _reaching({node for node, _ in wanted}, above) if wanted else set(waiting)
    ready: list[tuple[int, int, Any]] = []
    number = itertools.count()

    def arrive(node: Any, index: int, grad: Tensor | None) -> None:
        slots = arrived.setdefault(node, [None] * max(1, len(node._input_metadata)))
        if grad is not None:
            grad = _fitted(grad, node._input_metadata[index])
            earlier = slots[index]
            slots[index] = grad if earlier is None else earlier + grad

    def push(node: Any) -> None:
        # As the engine does: what was computed last comes first.
        heapq.heappush(ready, (-node._sequence_nr(), next(number), node))

    with torch.no_grad():
        for (node, index), output, grad in zip(roots, outputs, grads, strict=True):
            if grad is None:
                assert isinstance(output, Tensor)
                grad = torch.ones_like(output)  # noqa: PLW2901
            arrive(node, index, grad)
        for node in {node for node, _ in roots}:
            if not waiting[node]:
                push(node)
        while ready:
            *_, node = heapq.heappop(ready)
            given = arrived.pop(node)
            for index, grad in enumerate(given):
                if (node, index) in wanted:
                    found[wanted[node, index]] = grad
            if node not in needed:
                continue
            edges = [edge for edge in node.next_functions if edge[0] is not None]
            for (below, index), grad in zip(edges, _applied(node, given, not wanted), strict=True):
                arrive(below, index, grad)
                waiting[below] -= 1
                if not waiting[below]:
                    push(below)
    if accumulate_grad and inputs:
        for x, grad in zip(inputs, found, strict=True):
            assert isinstance(x, Tensor)
            x.grad = grad
    return tuple(found)


def _edge(x: Tensor | GradientEdge) -> tuple[Any, int]:
    edge = get_gradient_edge(x) if isinstance(x, Tensor) else x
    return edge.node, edge.output_nr


def _dependencies(roots: list[Any]) -> tuple[dict[Any, int], dict[Any, list[Any]]]:
    """Return for each node that the roots reach how many edges lead to it, and from which nodes."""
    counts: dict[Any, int] = dict.fromkeys(roots, 0)
    above: dict[Any, list[Any]] = {}
    stack = list(counts)
    while stack:
        node = stack.pop()
        for below, _ in node.next_functions:
            if below is None:
                continue
            if below not in counts:
                counts[below] = 0
                stack.append(below)
            counts[below] += 1
            above.setdefault(below, []).append(node)
    return counts, above


def _reaching(wanted: set[Any], above: dict[Any, list[Any]]) -> set[Any]:
    """Return the nodes from which an edge leads to what is wanted; others are not computed."""
    found: set[Any] = set()
    stack = list(wanted)
    while stack:
        for node in above.get(stack.pop(), []):
            if node not in found:
                found.add(node)
                stack.append(node)
    return found


def _fitted(grad: Tensor, wanted: Any) -> Tensor:
    """Sum what was broadcast, and convert to the dtype of what the gradient belongs to."""
    if grad.shape != torch.Size(wanted.shape):
        grad = grad.sum_to_size(wanted.shape)
    return grad if grad.dtype == wanted.dtype else grad.to(wanted.dtype)


def _applied(node: Any, grads: list[Tensor | None], accumulate: bool) -> list[Tensor | None]:
    """Return the gradients for those of a node's inputs that need one."""
    edges = node.next_functions
    if all(grad is None for grad in grads):
        return [None for below, _ in edges if below is not None]
    if hasattr(node, "variable"):
        if accumulate:
            _accumulate(node.variable, grads[0])
        return []
    if isinstance(node, BackwardCFunction):
        metadata = node._input_metadata  # type: ignore[attr-defined]
        grads = [
            torch.zeros(m.shape, dtype=m.dtype, device=m.device) if grad is None else grad
            for grad, m in zip(grads, metadata, strict=True)
        ]
        # Arguments other than tensors have no edge, but a result.
        needed = list(node.needs_input_grad)
        given = node.apply(*grads)
    else:
        needed = [below is not None for below, _ in edges]
        given = node(*grads)
    given = given if isinstance(given, tuple) else (given,)
    return [grad for grad, is_needed in zip(given, needed, strict=True) if is_needed]


def _accumulate(leaf: Tensor, grad: Tensor | None) -> None:
    """Give a leaf its gradient: the tensor itself if it lies in memory as the leaf does."""
    assert grad is not None
    if leaf.grad is not None:
        leaf.grad += grad
    elif _layout(grad) == _layout(leaf):
        leaf.grad = grad
    else:
        leaf.grad = torch.empty_like(leaf).copy_(grad)


def _layout(x: Tensor) -> list[int]:
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
