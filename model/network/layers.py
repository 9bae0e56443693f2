"""Building blocks of the pyramid and the heads.

Module names follow effdet 0.4.1's, because published checkpoints are keyed by them.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch.nn.functional as F
from timm.layers import get_act_layer
from torch import Tensor, nn

from model.network.sync_batchnorm import normalize_together

NormLayer = Callable[[int], nn.Module]
Size = tuple[int, int]


def activation(name: str) -> nn.Module:
    """An activation by its name in timm, in place if possible."""
    layer: nn.Module = get_act_layer(name)(inplace=True)
    return layer


class ConvNorm(nn.Module):
    """Convolution of stride 1 that keeps the size, then an optional norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool,
        norm: NormLayer | None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )
        self.bn = norm(out_channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """N x in x h x w -> N x out x h x w."""
        x = self.conv(x)
        return x if self.bn is None else self.bn(x)


class SeparableConvNorm(nn.Module):
    """Depthwise 3 x 3 convolution, pointwise convolution, then an optional norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool,
        norm: NormLayer | None,
    ) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=in_channels,
            bias=False,
        )
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.bn = norm(out_channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """N x in x h x w -> N x out x h x w."""
        x = self.conv_pw(self.conv_dw(x))
        return x if self.bn is None else self.bn(x)


def conv_norm(separable: bool) -> type[ConvNorm] | type[SeparableConvNorm]:
    """The convolution class of a configuration's pyramid and heads."""
    return SeparableConvNorm if separable else ConvNorm


class MaxPool(nn.Module):
    """Max pooling from one level's size to another's, with windows that overlap by one.

    TensorFlow's "same" padding puts the odd row at the bottom and the odd column at the right.
    Pooling in ceil mode reads the same windows without writing a padded copy first.
    """

    def __init__(self, input_size: Size, output_size: Size, pad_type: str) -> None:
        super().__init__()
        strides = [-(-i // o) for i, o in zip(input_size, output_size, strict=True)]
        kernels = [stride + 1 for stride in strides]
        if pad_type == "same":
            needed = [
                max((o - 1) * s + k - i, 0)
                for i, o, s, k in zip(input_size, output_size, strides, kernels, strict=True)
            ]
            paddings = [total // 2 for total in needed]
        else:
            paddings = [(s - 1 + k - 1) // 2 for s, k in zip(strides, kernels, strict=True)]
        self.kernel_size = (kernels[0], kernels[1])
        self.stride = (strides[0], strides[1])
        self.padding = (paddings[0], paddings[1])
        self.ceil_mode = pad_type == "same"

    def forward(self, x: Tensor) -> Tensor:
        """N x C x input_size -> N x C x output_size."""
        return F.max_pool2d(
            x, self.kernel_size, self.stride, self.padding, ceil_mode=self.ceil_mode
        )


class Interpolate(nn.Module):
    """Resampling to a fixed size."""

    def __init__(self, output_size: Size, mode: str) -> None:
        super().__init__()
        self.output_size = output_size
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """N x C x any size -> N x C x output_size."""
        align_corners = None if self.mode == "nearest" else False
        return F.interpolate(x, self.output_size, mode=self.mode, align_corners=align_corners)


class Resample(nn.Sequential):
    """Resamples a feature map to another level's size and the pyramid's channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Size,
        output_size: Size,
        *,
        pad_type: str,
        downsample: str,
        upsample: str,
        norm: NormLayer,
        bias: bool,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            self.conv = ConvNorm(in_channels, out_channels, 1, bias=bias, norm=norm)
        if input_size[0] > output_size[0] and input_size[1] > output_size[1]:
            self.downsample = (
                MaxPool(input_size, output_size, pad_type)
                if downsample == "max"
                else Interpolate(output_size, downsample)
            )
        elif input_size != output_size:
            self.upsample = Interpolate(output_size, upsample)

    @property
    def has_norm(self) -> bool:
        """Whether it begins with a convolution and a batch norm."""
        return "conv" in self._modules

    def after_norm(self, x: Tensor) -> Tensor:
        """Apply what follows the batch norm."""
        for name, module in self.named_children():
            if name != "conv":
                x = module(x)
        return x


def resample_together(resamples: Sequence[Resample], xs: Sequence[Tensor]) -> list[Tensor]:
    """Apply each, which has a norm, to its map; statistics over ranks travel together."""
    convs = [resample.conv for resample in resamples]
    convolved = [conv.conv(x) for conv, x in zip(convs, xs, strict=True)]
    normalized = normalize_together([cast(nn.Module, conv.bn) for conv in convs], convolved)
    return [resample.after_norm(x) for resample, x in zip(resamples, normalized, strict=True)]
