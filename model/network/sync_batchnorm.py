"""Batch norm over the batches of all ranks, whatever library connects them.

PyTorch's own SyncBatchNorm needs a GPU and torch.distributed, Horovod's needs Horovod. Between
ranks, both only add vectors. This module takes a function that does so, and works with either.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from model.network.batchnorm_kernels import Affine, kernels_for

AllReduceSum = Callable[[Tensor], Tensor]


_CONNECTIONS: list[AllReduceSum] = []


@torch.library.custom_op("efficientdet::all_reduce_sum", mutates_args=())
def _compiled_sum(tensor: Tensor, connection: int) -> Tensor:
    """Add up over ranks as one operation, which the compiler calls and does not look into.

    It cannot trace Horovod, and would split the network at each batch norm. All ranks compile the
    same graph, and so call this in the same order.
    """
    return _CONNECTIONS[connection](tensor)


@_compiled_sum.register_fake
def _(tensor: Tensor, connection: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(tensor)


class _Connection:
    """The sum over ranks, shared by copies of the model, such as averaged weights."""

    def __init__(self, all_reduce_sum: AllReduceSum) -> None:
        self._all_reduce_sum = all_reduce_sum
        self._number = len(_CONNECTIONS)
        _CONNECTIONS.append(all_reduce_sum)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks as a new tensor."""
        if torch.compiler.is_compiling():
            total: Tensor = _compiled_sum(tensor, self._number)
            return total
        return self._all_reduce_sum(tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Connection":
        return self


class _Group(NamedTuple):
    """Batch norms that do not depend on each other, so that their sums travel together."""

    connection: _Connection
    eps: list[float]
    channels: list[int]


class _Normalize(torch.autograd.Function):
    """Batch norm with statistics over all ranks (https://arxiv.org/abs/1502.03167, section 3)."""

    @staticmethod
    def forward(ctx: Any, group: _Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One collective for the whole group.

        Args:
            ctx: of autograd.
            group: of the batch norms.
            tensors: an x of each norm, then a weight of each, then a bias of each.

        Returns:
            The normalized x of each, and mean, biased variance and count over all ranks, the
            channels of all norms one after the other.
        """
        xs, weights, biases = _split(tensors, len(group.eps))
        local = [kernels_for(x).statistics(x, eps) for x, eps in zip(xs, group.eps, strict=True)]
        # Filled on the device: a copy from the host would make it wait.
        count = torch.cat(
            [
                m.new_full(m.shape, x.numel() // m.numel())
                for (m, _), x in zip(local, xs, strict=True)
            ]
        )
        mean, variance = (torch.cat(each).double() for each in zip(*local, strict=True))
        # Moments about zero can be added over ranks. In float64, their difference keeps the digits
        # that float32 would lose if the mean is far from zero.
        moments = torch.stack([torch.ones_like(mean), mean, variance + mean.square()]) * count
        total, mean, second_moment = group.connection.all_reduce_sum(moments)
        mean, second_moment = mean / total, second_moment / total
        variance = (second_moment - mean.square()).clamp(min=0.0).float()
        mean = mean.float()
        ys = [
            kernels_for(x).normalize(x, Affine(weight, bias, eps), *statistics)
            for x, weight, bias, eps, *statistics in zip(
                xs,
                weights,
                biases,
                group.eps,
                mean.split(group.channels),
                variance.split(group.channels),
                strict=True,
            )
        ]
        ctx.save_for_backward(mean, variance, total, *tensors)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, total)
        return *ys, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of one batch of all ranks' images; weight and bias get this rank's part."""
        group: _Group = ctx.group
        mean, variance, total, *tensors = ctx.saved_tensors
        xs, weights, biases = _split(tensors, len(group.eps))
        affines = [Affine(*each) for each in zip(weights, biases, group.eps, strict=True)]
        statistics = list(
            zip(mean.split(group.channels), variance.split(group.channels), strict=True)
        )
        grad_biases, grad_weights, partials = zip(
            *(
                kernels_for(x).backward_sums(grad, x, affine, *each)
                for grad, x, affine, each in zip(grads, xs, affines, statistics, strict=False)
            ),
            strict=True,
        )
        sums = torch.stack([torch.cat(grad_biases), torch.cat(grad_weights)]).double()
        means = (group.connection.all_reduce_sum(sums) / total).float()
        own_means = zip(*(each.split(group.channels) for each in means), strict=True)
        grad_xs = [
            kernels_for(x).backward_input(partial, x, affine, *each)
            for partial, x, affine, *each in zip(
                partials, xs, affines, statistics, own_means, strict=True
            )
        ]
        return None, *grad_xs, *grad_weights, *grad_biases


def _split(tensors: Sequence[Tensor], count: int) -> tuple[Sequence[Tensor], ...]:
    """Return x, weights and biases of `count` batch norms."""
    return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]


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
        return _synchronized([self], [x])[0] if self.training else super().forward(x)

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Update the running statistics with those of a batch of all ranks."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        average = self.momentum is None
        share: Any = self.num_batches_tracked.reciprocal() if average else self.momentum
        unbiased = variance * (total / (total - 1).clamp(min=1)).float()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def _synchronized(norms: Sequence[SyncBatchNorm2d], xs: Sequence[Tensor]) -> list[Tensor]:
    """Normalize each x with its norm, and track the statistics."""
    channels = [norm.num_features for norm in norms]
    group = _Group(norms[0].connection, [norm.eps for norm in norms], channels)
    *ys, mean, variance, total = _Normalize.apply(
        group, *xs, *(norm.weight for norm in norms), *(norm.bias for norm in norms)
    )
    statistics = (each.split(channels) for each in (mean, variance, total))
    for norm, *own in zip(norms, *statistics, strict=True):
        norm.track(*own)
    return ys


def normalize_together(norms: Sequence[nn.Module], xs: Sequence[Tensor]) -> list[Tensor]:
    """Apply each norm to its x; statistics over ranks take one collective for all of them."""
    synced = [norm for norm in norms if type(norm) is SyncBatchNorm2d and norm.training]
    if len(synced) == len(norms) > 0:
        return _synchronized(synced, xs)
    return [norm(x) for norm, x in zip(norms, xs, strict=True)]


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
        all_reduce_sum: returns the sum of a 2-d float64 tensor over all ranks. Every rank calls
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
