"""The focal loss, summed over all anchors and classes."""

from typing import Any

import torch
from torch import Tensor

from model.detection.device import runs_eagerly_on_cpu

# Logits processed at a time on a CPU, so that they stay in its cache.
_CPU_CHUNK = 2**17

# Gradients of the focal loss are well below 16, and most are near 0. This power of two keeps both
# ends within the range of float16, whose largest number is 65504.
_HALF_SCALE = 4096.0

# A logit so low that its loss and gradient are 0, finite in float16.
_NEVER = -1e4


def focal_loss(z: Tensor, gamma: float, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The focal loss and its gradient, without the weight alpha.

    With p = sigmoid(z) the probability given to the wrong answer, the loss is p**gamma times the
    cross-entropy softplus(z) (https://arxiv.org/abs/1708.02002, equation 5). Label smoothing s
    changes the cross-entropy only, to softplus(z) - s/2 z. A positive with logit x has z = -x, a
    negative z = x.

    Args:
        z: float32, any shape.
        gamma: the focusing parameter, at least 1.
        label_smoothing: s, in [0, 1).

    Returns:
        The loss and its derivative by z, both in the shape of z.
    """
    p = z.sigmoid()
    modulator = _power(p, gamma)
    # softplus(z) = -log(sigmoid(-z)); log is three times as fast as log1p. Where sigmoid
    # underflows, softplus(z) is z.
    cross_entropy = z.neg().sigmoid_().clamp_(min=1e-37).log_().neg_()
    cross_entropy = torch.maximum(cross_entropy, z)
    if label_smoothing:
        cross_entropy = cross_entropy.sub_(z, alpha=label_smoothing / 2)
    loss = cross_entropy.mul_(modulator)
    # d/dz = gamma loss (1 - p) + modulator (p - s/2)
    gradient = loss * gamma
    difference = (modulator - gradient).mul_(p)
    gradient = gradient.add_(difference)
    if label_smoothing:
        gradient = gradient.sub_(modulator, alpha=label_smoothing / 2)
    return loss, gradient


def _power(p: Tensor, gamma: float) -> Tensor:
    if gamma == 1.5:  # pow takes as long as all the rest
        return p.sqrt().mul_(p)
    return p.square() if gamma == 2.0 else p.pow(gamma)


class FocalSum(torch.autograd.Function):
    """Sum of the focal loss over all anchors and classes, with its gradient in the same pass.

    Almost all logits are negatives. So all are first treated as negatives, in the order in which
    they lie in memory, and then the one logit of each anchor that may be a positive is corrected.
    This needs neither one-hot targets nor a copy in another layout. The gradient has a closed form
    that shares its terms with the loss, so that backward is one multiplication.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd functions take no keywords)
        ctx: Any,
        logits: Tensor,
        class_targets: Tensor,
        alpha: float,
        gamma: float,
        label_smoothing: float,
    ) -> Tensor:
        """Logits (N, A*C, h, w) and targets (N, h, w, A) -> their sum, in float32."""
        scale = _HALF_SCALE if logits.dtype == torch.float16 else 1.0
        logits = _without_ignored(logits, class_targets)

        gradient = torch.empty_like(logits)
        total = torch.zeros((), device=logits.device)
        for x, x_gradient in _chunks(logits, gradient):
            negatives, negatives_gradient = focal_loss(x.float(), gamma, label_smoothing)
            total = total + negatives.sum() * (1 - alpha)
            x_gradient.copy_(negatives_gradient.mul_((1 - alpha) * scale))

        # One logit of each anchor: that of its class, or an arbitrary one if it has none.
        anchors = class_targets.shape[-1]
        targets = class_targets.permute(0, 3, 1, 2).unsqueeze(2)
        index = targets.clamp(min=0)
        own_gradient = gradient.unflatten(1, (anchors, -1))
        x = logits.unflatten(1, (anchors, -1)).gather(2, index).float()
        negative, _ = focal_loss(x, gamma, label_smoothing)
        positive, positive_gradient = focal_loss(-x, gamma, label_smoothing)
        is_positive = targets >= 0
        correction = positive * alpha - negative * (1 - alpha)
        total = total + torch.where(is_positive, correction, 0.0).sum()
        corrected = torch.where(
            is_positive,
            (positive_gradient * (-alpha * scale)).to(gradient.dtype),
            own_gradient.gather(2, index),
        )
        own_gradient.scatter_(2, index, corrected)
        ctx.save_for_backward(gradient)
        ctx.scale = scale
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the logits, given the gradient by the sum."""
        (gradient,) = ctx.saved_tensors
        if ctx.scale != 1.0:
            # With a loss scaler the product fits float16, even where the factor alone does not.
            return (
                (gradient.float() * (grad / ctx.scale)).to(gradient.dtype),
                None,
                None,
                None,
                None,
            )
        return gradient * grad, None, None, None, None


def _without_ignored(logits: Tensor, class_targets: Tensor) -> Tensor:
    """Give ignored anchors (-2) logits without loss and gradient."""
    ignored = class_targets == -2
    if runs_eagerly_on_cpu(logits) and not ignored.any():
        return logits  # checking is cheaper than masking
    ignored = ignored.permute(0, 3, 1, 2).unsqueeze(2)
    by_anchor = logits.unflatten(1, (class_targets.shape[-1], -1))
    return by_anchor.masked_fill(ignored, _NEVER).flatten(1, 2)


def _chunks(logits: Tensor, gradient: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both tensors in the same chunks, in the order of memory."""
    if not runs_eagerly_on_cpu(logits):
        return [(logits, gradient)]
    if logits.is_contiguous(memory_format=torch.channels_last):
        logits, gradient = logits.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    chunks = logits.reshape(-1).split(_CPU_CHUNK)
    return list(zip(chunks, gradient.view(-1).split(_CPU_CHUNK), strict=True))
