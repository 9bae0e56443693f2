"""Batch norm over the batches of all ranks, whatever library connects them.

PyTorch's own SyncBatchNorm needs a GPU and torch.distributed, Horovod's needs Horovod. Between
ranks, both only add vectors. This module takes a function that does so, and works with either.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

AllReduceSum = Callable[[Tensor], Tensor]


class _Connection:
    """The sum over ranks, shared by copies of the model, such as averaged weights."""

    def __init__(self, all_reduce_sum: AllReduceSum) -> None:
        self.all_reduce_sum = all_reduce_sum

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Connection":
        return self


class _Normalize(torch.autograd.Function):
    """Batch norm with statistics over all ranks (https://arxiv.org/abs/1502.03167, section 3)."""

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd functions take no keywords)
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        connection: _Connection,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the normalized x, and mean, biased variance and count over all ranks."""
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        # Moments about zero can be added over ranks. In float64, their difference keeps the digits
        # that float32 would lose if the mean is far from zero.
        mean, variance = mean.double(), variance.double()
        second_moment = variance + mean.square()
        moments = torch.cat([mean * count, second_moment * count, mean.new_tensor([count])])
        moments = connection.all_reduce_sum(moments)
        total = moments[-1]
        mean, second_moment = (moments[:-1] / total).chunk(2)
        variance = (second_moment - mean.square()).clamp(min=0.0)
        mean, variance = mean.float(), variance.float()
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = eps
        ctx.connection = connection
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of one batch of all ranks' images; weight and bias get this rank's part."""
        grad = grads[0]
        x, weight, mean, variance, total = ctx.saved_tensors
        # With constant statistics; the gradient through the statistics is added below.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = ctx.connection.all_reduce_sum(torch.cat([grad_bias, grad_weight]).double())
        mean_grad, mean_grad_normalized = (sums / total).float().chunk(2)
        inverse_std = (variance + ctx.eps).rsqrt()
        # - weight / std * (mean_grad + normalized x * mean_grad_normalized), as slope * x + shift
        slope = -weight * inverse_std.square() * mean_grad_normalized
        shift = -weight * inverse_std * mean_grad - slope * mean
        shape = (1, -1, 1, 1)
        correction = torch.addcmul(shift.view(shape), x.float(), slope.view(shape))
        return (grad_x + correction).to(x.dtype), grad_weight, grad_bias, None, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of all ranks' batches together.

    The ranks' batches may have different sizes. In evaluation it is a BatchNorm2d.
    """

    def __init__(self, norm: nn.BatchNorm2d, connection: _Connection) -> None:
        # Its tensors are those of `norm`, so none are allocated here.
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.training = norm.training
        self.connection = connection

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w -> the same."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, total = _Normalize.apply(
            x, self.weight, self.bias, self.eps, self.connection
        )
        self._track(mean, variance, total)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (total / (total - 1).clamp(min=1)).float()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


class SyncBatchNormAct2d(SyncBatchNorm2d):
    """Replaces timm's BatchNormAct2d: the norm, then its dropout and activation."""

    def __init__(self, norm: BatchNormAct2d, connection: _Connection) -> None:
        super().__init__(norm, connection)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w -> the same."""
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


def convert_sync_batchnorm(model: nn.Module, all_reduce_sum: AllReduceSum) -> nn.Module:
    """Replace every batch norm with one over all ranks, in place.

    Parameters and buffers stay the same objects with the same names, so that optimizers and
    checkpoints from before and after fit.

    Args:
        model: a module; for a batch norm itself, its replacement is returned.
        all_reduce_sum: returns the sum of a 1-d float64 tensor over all ranks. Every rank calls
            it equally often and in the same order. It need not be differentiable.

    Raises:
        ValueError: a batch norm has no weights or no running statistics.
    """
    return _convert(model, _Connection(all_reduce_sum))


def _convert(module: nn.Module, connection: _Connection) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d):
        if not (module.affine and module.track_running_stats):
            raise ValueError(
                "a batch norm without weights or running statistics cannot be synchronized"
            )
        is_fused = isinstance(module, BatchNormAct2d)
        return (SyncBatchNormAct2d if is_fused else SyncBatchNorm2d)(module, connection)
    for name, child in list(module.named_children()):
        converted = _convert(child, connection)
        if converted is not child:
            module.add_module(name, converted)
    return module
