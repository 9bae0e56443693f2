"""The arithmetic of batch norm in steps, between which statistics can be summed over ranks.

A processor and a GPU have different fast operations for it; all tensors per channel are float32.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Affine(NamedTuple):
    """What a batch norm multiplies, adds, and adds to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float


class Kernels(Protocol):
    """Batch norm's steps on one kind of device. x and y: N x C x h x w, the others: C."""

    @staticmethod
    def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of each channel."""
        ...

    @staticmethod
    def normalize(x: Tensor, affine: Affine, mean: Tensor, variance: Tensor) -> Tensor:
        """Return y."""
        ...

    @staticmethod
    def backward_sums(
        grad: Tensor, x: Tensor, affine: Affine, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of bias and weight, and what `backward_input` continues from."""
        ...

    @staticmethod
    def backward_input(
        partial: Tensor,
        x: Tensor,
        affine: Affine,
        statistics: tuple[Tensor, Tensor],
        means: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the gradient of x.

        Args:
            partial: the last result of `backward_sums`.
            x: that was normalized.
            affine: of the batch norm.
            statistics: mean and biased variance over all ranks.
            means: of grad, and of grad times the normalized x, over all ranks.
        """
        ...


class ProcessorKernels:
    """Plain sums: torch.var_mean over three dimensions is 10 to 40 times slower."""

    @staticmethod
    def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        """Return mean and biased variance of each channel."""
        x = x.float()
        count = x.numel() // x.shape[1]
        mean = x.flatten(2).sum(2).sum(0) / count
        # Centred first, so that no digits are lost if the mean is far from zero.
        deviation = x - mean.view(1, -1, 1, 1)
        return mean, deviation.square_().flatten(2).sum(2).sum(0) / count

    @staticmethod
    def normalize(x: Tensor, affine: Affine, mean: Tensor, variance: Tensor) -> Tensor:
        """Return y."""
        return F.batch_norm(x, mean, variance, affine.weight, affine.bias, False, 0.0, affine.eps)

    @staticmethod
    def backward_sums(
        grad: Tensor, x: Tensor, affine: Affine, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of bias and weight, and x's for constant statistics."""
        partial, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, affine.weight, mean, variance, None, None, False, affine.eps, [True] * 3
        )
        return grad_bias, grad_weight, partial

    @staticmethod
    def backward_input(
        partial: Tensor,
        x: Tensor,
        affine: Affine,
        statistics: tuple[Tensor, Tensor],
        means: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the gradient of x: the partial one and what comes through the statistics."""
        (mean, variance), (mean_grad, mean_grad_normalized) = statistics, means
        inverse_std = (variance + affine.eps).rsqrt()
        # - weight / std * (mean_grad + normalized x * mean_grad_normalized), as slope * x + shift
        slope = -affine.weight * inverse_std.square() * mean_grad_normalized
        shift = -affine.weight * inverse_std * mean_grad - slope * mean
        shape = (1, -1, 1, 1)
        through_statistics = torch.addcmul(shift.view(shape), x.float(), slope.view(shape))
        return through_statistics.add_(partial).to(x.dtype)


class CudaKernels:
    """The operations of torch.nn.SyncBatchNorm, which exist for CUDA only."""

    @staticmethod
    def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of each channel."""
        mean, inverse_std = torch.batch_norm_stats(x, eps)
        # In float64, since a variance far below eps would lose its digits.
        return mean, (inverse_std.double().pow(-2) - eps).clamp(min=0.0).float()

    @staticmethod
    def normalize(x: Tensor, affine: Affine, mean: Tensor, variance: Tensor) -> Tensor:
        """Return y."""
        inverse_std = (variance + affine.eps).rsqrt()
        return torch.batch_norm_elemt(x, affine.weight, affine.bias, mean, inverse_std, affine.eps)

    @staticmethod
    def backward_sums(
        grad: Tensor, x: Tensor, affine: Affine, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of bias and weight, and grad in x's layout."""
        layout = torch.channels_last
        if not x.is_contiguous(memory_format=layout):
            layout = torch.contiguous_format
        grad = grad.contiguous(memory_format=layout)
        inverse_std = (variance + affine.eps).rsqrt()
        _, _, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, inverse_std, affine.weight, True, True, True
        )
        return grad_bias, grad_weight, grad

    @staticmethod
    def backward_input(
        partial: Tensor,
        x: Tensor,
        affine: Affine,
        statistics: tuple[Tensor, Tensor],
        means: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the gradient of x."""
        (mean, variance), (mean_grad, mean_grad_normalized) = statistics, means
        std = (variance + affine.eps).sqrt()
        return torch.batch_norm_backward_elemt(
            partial,
            x,
            mean,
            std.reciprocal(),
            affine.weight,
            mean_grad,
            # The kernel's own sum is of x less its mean, and it divides both by a count.
            mean_grad_normalized * std,
            torch.ones(1, dtype=torch.int32, device=x.device),
        )


def kernels_for(x: Tensor) -> type[Kernels]:
    """Return the fast operations of a tensor's device."""
    return CudaKernels if x.is_cuda else ProcessorKernels
