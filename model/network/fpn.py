"""The feature pyramid: repeated cells that fuse feature maps of several levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from model.config import DetectorConfig
from model.network.fpn_graphs import Node, fpn_nodes
from model.network.layers import (
    NormLayer,
    Resample,
    Size,
    activation,
    conv_norm,
    resample_together,
)

# Keeps fast normalized fusion finite if all weights are clipped to zero (paper, section 3.3).
FUSION_EPSILON = 1e-4


@dataclass(frozen=True)
class FeatureMap:
    """Channels and (height, width) of one map."""

    channels: int
    size: Size


def norm_layer(config: DetectorConfig) -> NormLayer:
    """The batch norm of the pyramid and the heads."""
    return partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum)


def _resample(config: DetectorConfig, source: FeatureMap, size: Size) -> Resample:
    return Resample(
        source.channels,
        config.fpn_channels,
        source.size,
        size,
        pad_type=config.pad_type,
        downsample=config.downsample_type,
        upsample=config.upsample_type,
        norm=norm_layer(config),
        bias=config.redundant_bias,
    )


class Fuse(nn.Module):
    """Weighted sum of maps, each resampled to this node's level first (paper, section 3.3)."""

    def __init__(
        self, config: DetectorConfig, node: Node, sources: Sequence[FeatureMap], size: Size
    ) -> None:
        super().__init__()
        self.inputs = node.inputs
        self.weighting = node.weighting
        self.resample = nn.ModuleDict(
            {str(index): _resample(config, sources[index], size) for index in node.inputs}
        )
        self.edge_weights = (
            None if node.weighting == "sum" else nn.Parameter(torch.ones(len(node.inputs)))
        )

    def _weights(self) -> Tensor | None:
        if self.edge_weights is None:
            return None
        if self.weighting == "attn":
            return self.edge_weights.softmax(0)
        positive = self.edge_weights.relu()
        return positive / (positive.sum() + FUSION_EPSILON)

    def forward(self, maps: Sequence[Tensor], resampled: Mapping[int, Tensor]) -> Tensor:
        """Maps of all levels so far -> one map, N x fpn_channels x size.

        Args:
            maps: of all levels so far.
            resampled: results of `self.resample` that are known, by the number of the map.
        """
        inputs = [
            resampled[index] if index in resampled else resample(maps[index])
            for index, resample in zip(self.inputs, self.resample.values(), strict=True)
        ]
        weights = self._weights()
        if weights is not None:
            # Scaled and added map by map: stacking them first would copy every map again.
            scales = weights.to(inputs[0].dtype).unbind()
            inputs = [x * scale for x, scale in zip(inputs, scales, strict=True)]
        if len(inputs) == 1:
            # The activation after a fusion works in place, and other nodes may use this map too.
            return inputs[0].clone() if weights is None else inputs[0]
        total = inputs[0] + inputs[1]
        for x in inputs[2:]:
            total = total + x
        return total


class FuseConv(nn.Module):
    """One node of the graph: fusion, activation, convolution, norm."""

    def __init__(
        self, config: DetectorConfig, node: Node, sources: Sequence[FeatureMap], size: Size
    ) -> None:
        super().__init__()
        channels = config.fpn_channels
        self.combine = Fuse(config, node, sources, size)
        self.after_combine = nn.Sequential()
        self.after_combine.add_module("act", activation(config.act_type))
        self.after_combine.add_module(
            "conv",
            conv_norm(config.separable_conv)(
                channels, channels, 3, bias=config.redundant_bias, norm=norm_layer(config)
            ),
        )

    def forward(self, maps: Sequence[Tensor], resampled: Mapping[int, Tensor]) -> Tensor:
        """Maps of all levels so far -> one map, N x fpn_channels x size; see Fuse."""
        fused: Tensor = self.after_combine(self.combine(maps, resampled))
        return fused


class PyramidCell(nn.Module):
    """One pass over the graph."""

    def __init__(
        self, config: DetectorConfig, nodes: Sequence[Node], sources: Sequence[FeatureMap]
    ) -> None:
        super().__init__()
        maps = list(sources) + [
            FeatureMap(config.fpn_channels, config.level_size(node.level)) for node in nodes
        ]
        self.num_levels = config.num_levels
        self.output_maps = maps[-self.num_levels :]
        self.fnode = nn.ModuleList(
            FuseConv(config, node, maps, config.level_size(node.level)) for node in nodes
        )

    def laterals(self, num_maps: int) -> dict[tuple[int, int], Resample]:
        """Return what makes the pyramid's channels of the first maps, by node and map."""
        return {
            (number, index): resample
            for number, node in enumerate(cast(Sequence[FuseConv], self.fnode))
            for index, resample in zip(
                node.combine.inputs,
                cast(Sequence[Resample], node.combine.resample.values()),
                strict=True,
            )
            if index < num_maps and resample.has_norm
        }

    def forward(
        self, levels: list[Tensor], laterals: Mapping[tuple[int, int], Tensor]
    ) -> list[Tensor]:
        """One map per level -> one map per level, all with fpn_channels.

        Args:
            levels: one map per level.
            laterals: results of `self.laterals`.
        """
        maps = list(levels)
        for number, node in enumerate(self.fnode):
            resampled = {index: x for (of, index), x in laterals.items() if of == number}
            maps.append(node(maps, resampled))
        return maps[-self.num_levels :]


class FeaturePyramid(nn.Module):
    """Backbone maps -> one map per level from min_level to max_level.

    Args:
        config: of the detector.
        backbone_channels: channels of the backbone's maps, from min_level up.
    """

    def __init__(self, config: DetectorConfig, backbone_channels: Sequence[int]) -> None:
        super().__init__()
        levels = range(config.min_level, config.max_level + 1)
        maps = [
            FeatureMap(channels, config.level_size(level))
            for level, channels in zip(levels, backbone_channels, strict=False)
        ]
        # Levels coarser than the backbone's are each resampled from the one before.
        self.resample = nn.ModuleDict()
        for level in levels[len(maps) :]:
            size = config.level_size(level)
            self.resample[str(len(maps))] = _resample(config, maps[-1], size)
            maps.append(FeatureMap(config.fpn_channels, size))

        nodes = fpn_nodes(config.fpn_name, config.min_level, config.max_level)
        cells = []
        for _ in range(config.fpn_cell_repeats):
            cell = PyramidCell(config, nodes, maps)
            cells.append(cell)
            maps = cell.output_maps
        self.cell = nn.Sequential(*cells)

    def forward(self, backbone_maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the backbone, finest first -> maps of all levels, N x fpn_channels x h x w."""
        maps = list(backbone_maps)
        cells = cast(Sequence[PyramidCell], self.cell)
        # The batch norms that only depend on the backbone go together: of the first coarser level,
        # and of the first cell.
        coarser = cast(Sequence[Resample], list(self.resample.values()))
        first = [resample for resample in coarser[:1] if resample.has_norm]
        laterals = cells[0].laterals(len(maps))
        sources = [maps[-1] for _ in first] + [maps[index] for _, index in laterals]
        resampled = resample_together([*first, *laterals.values()], sources)
        maps += resampled[: len(first)]
        for resample in coarser[len(first) :]:
            maps.append(resample(maps[-1]))
        levels = cells[0](maps, dict(zip(laterals, resampled[len(first) :], strict=True)))
        for cell in cells[1:]:
            levels = cell(levels, {})
        return levels
