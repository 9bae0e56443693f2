"""The graphs of feature pyramids: which maps each node fuses.

A graph works on a list of maps that starts with the input levels, finest first. Every node appends
one map, and refers to its inputs by their indices in the list.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One fusion: its level, the indices of its inputs, and how their weights are normalized."""

    level: int
    inputs: tuple[int, ...]
    weighting: str  # sum, attn (softmax) or fastattn (ReLU over its sum)


class _Graph:
    """Nodes in the order in which they are computed, and the indices of each level's maps."""

    def __init__(self, levels: range, weighting: str) -> None:
        self.weighting = weighting
        self.indices = {level: [i] for i, level in enumerate(levels)}
        self.nodes: list[Node] = []

    def add(self, level: int, *inputs: int, weighting: str | None = None) -> None:
        index = len(self.indices) + len(self.nodes)
        self.nodes.append(Node(level, inputs, weighting or self.weighting))
        self.indices[level].append(index)

    def last(self, level: int) -> int:
        return self.indices[level][-1]

    def first(self, level: int) -> int:
        return self.indices[level][0]

    def repeat_last(self, level: int) -> None:
        """Use a level's last map as its next one too."""
        self.indices[level].append(self.last(level))


def _bifpn(levels: range, weighting: str) -> _Graph:
    """EfficientDet (https://arxiv.org/abs/1911.09070), section 3.2, figure 2d."""
    graph = _Graph(levels, weighting)
    for level in reversed(levels[:-1]):
        graph.add(level, graph.last(level), graph.last(level + 1))
    for level in levels[1:]:
        graph.add(level, *graph.indices[level], graph.last(level - 1))
    return graph


def _pan(levels: range, weighting: str) -> _Graph:
    """The paths of Path Aggregation Networks (https://arxiv.org/abs/1803.01534), figure 1a, b."""
    graph = _Graph(levels, weighting)
    graph.add(levels[-1], graph.last(levels[-1]))
    for level in reversed(levels[:-1]):
        graph.add(level, graph.last(level), graph.last(level + 1))
    graph.add(levels[0], graph.last(levels[0]))
    for level in levels[1:]:
        graph.add(level, graph.last(level), graph.last(level - 1))
    return graph


def _qufpn(levels: range, weighting: str) -> _Graph:
    """Quad FPN (https://ieeexplore.ieee.org/document/9225379): down and up, up and down, added."""
    graph = _Graph(levels, weighting)
    bottom, top = levels[0], levels[-1]

    for level in reversed(levels[:-1]):
        graph.add(level, graph.last(level), graph.last(level + 1))
    graph.repeat_last(top)

    for level in levels[1:-1]:
        graph.add(level, *graph.indices[level], graph.last(level - 1))
    graph.add(top, graph.first(top), graph.last(top - 1))
    graph.repeat_last(bottom)

    # The second pair of paths starts over from the input levels.
    for level in levels[1:]:
        below = graph.first(bottom) if level == bottom + 1 else graph.last(level - 1)
        graph.add(level, graph.first(level), below)
    graph.repeat_last(bottom)

    for level in reversed(levels[1:-1]):
        graph.add(level, graph.first(level), graph.last(level), graph.last(level + 1))
    graph.add(bottom, graph.first(bottom), graph.last(bottom + 1))
    graph.repeat_last(top)

    for level in levels:
        graph.add(level, graph.indices[level][2], graph.indices[level][4], weighting="fastattn")
    return graph


_KINDS = {"bifpn": _bifpn, "pan": _pan, "qufpn": _qufpn}
_WEIGHTINGS = {"sum": "sum", "attn": "attn", "fa": "fastattn"}


def fpn_nodes(fpn_name: str, min_level: int, max_level: int) -> list[Node]:
    """The nodes of one pyramid cell; the last `num_levels` maps are its output, finest first.

    Args:
        fpn_name: kind and weighting, such as `bifpn_fa`.
        min_level: the finest level.
        max_level: the coarsest level, included.
    """
    kind, weighting = fpn_name.split("_")
    return _KINDS[kind](range(min_level, max_level + 1), _WEIGHTINGS[weighting]).nodes
