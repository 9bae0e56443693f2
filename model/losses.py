"""The focal loss over all anchors and classes, fast and finite in 16 bits too."""

from typing import Any

import torch
from torch import Tensor

from model.device import runs_eagerly_on_cpu

# Logits that are worked on at a time on a CPU, so that the passes over them stay in its cache.
_CPU_CHUNK = 2**17

# Slopes of the focal loss lie well within 16, and mostly near 0: this power of two keeps both
# ends inside float16, whose largest number is 65504.
_HALF_SCALE = 4096.0

# A logit that no class survives, finite in float16.
_NEVER = -1e4


def focal_loss(z: Tensor, gamma: float, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The focal loss and its slope, without the weight alpha.

    With p = sigmoid(z) the probability given to the wrong answer, the loss is p**gamma times the
    cross-entropy softplus(z) (https://arxiv.org/abs/1708.02002, equation 5). Label smoothing s
    softens the cross-entropy only, to softplus(z) - s/2 z. A positive with logit x has z = -x, a
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
    # softplus(z) = -log(sigmoid(-z)); log runs at three times the speed of log1p. Where sigmoid
    # underflows, softplus(z) is z.
    cross_entropy = z.neg().sigmoid_().clamp_(min=1e-37).log_().neg_()
    cross_entropy = torch.maximum(cross_entropy, z)
    if label_smoothing:
        cross_entropy = cross_entropy.sub_(z, alpha=label_smoothing / 2)
    loss = cross_entropy.mul_(modulator)
    # d/dz = gamma loss (1 - p) + modulator (p - s/2)
    slope = loss * gamma
    pulled = (modulator - slope).mul_(p)
    slope = slope.add_(pulled)
    if label_smoothing:
        slope = slope.sub_(modulator, alpha=label_smoothing / 2)
    return loss, slope


def _power(p: Tensor, gamma: float) -> Tensor:
    if gamma == 1.5:  # pow costs as much as all the rest
        return p.sqrt().mul_(p)
    return p.square() if gamma == 2.0 else p.pow(gamma)


class FocalSum(torch.autograd.Function):
    """Sum of the focal loss over all anchors and classes, and its slope, in one go.

    Almost all logits are negatives. So all of them are treated as negatives, in passes over them
    as they lie in memory, and then the one logit of each anchor that may be a positive is put
    right: there is neither a one-hot target nor a copy in another layout. The slope is known in
    closed form and shares its terms with the loss, so that backward is one multiplication.
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

        slope = torch.empty_like(logits)
        total = torch.zeros((), device=logits.device)
        for x, x_slope in _chunks(logits, slope):
            negatives, negatives_slope = focal_loss(x.float(), gamma, label_smoothing)
            total = total + negatives.sum() * (1 - alpha)
            x_slope.copy_(negatives_slope.mul_((1 - alpha) * scale))

        # One logit of each anchor: that of its class, or any where it has none.
        anchors = class_targets.shape[-1]
        targets = class_targets.permute(0, 3, 1, 2).unsqueeze(2)
        place = targets.clamp(min=0)
        own_slope = slope.unflatten(1, (anchors, -1))
        x = logits.unflatten(1, (anchors, -1)).gather(2, place).float()
        negative, _ = focal_loss(x, gamma, label_smoothing)
        positive, positive_slope = focal_loss(-x, gamma, label_smoothing)
        is_positive = targets >= 0
        correction = positive * alpha - negative * (1 - alpha)
        total = total + torch.where(is_positive, correction, 0.0).sum()
        corrected = torch.where(
            is_positive,
            (positive_slope * (-alpha * scale)).to(slope.dtype),
            own_slope.gather(2, place),
        )
        own_slope.scatter_(2, place, corrected)
        ctx.save_for_backward(slope)
        ctx.scale = scale
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Slope times the gradient of the sum."""
        (slope,) = ctx.saved_tensors
        if ctx.scale != 1.0:
            # Under a loss scaler the product fits float16 where the factor alone may not.
            return (slope.float() * (grad / ctx.scale)).to(slope.dtype), None, None, None, None
        return slope * grad, None, None, None, None


def _without_ignored(logits: Tensor, class_targets: Tensor) -> Tensor:
    """Give the anchors that are left out (-2) logits with neither loss nor slope."""
    ignored = class_targets == -2
    if runs_eagerly_on_cpu(logits) and not ignored.any():
        return logits  # looking is cheaper than masking
    ignored = ignored.permute(0, 3, 1, 2).unsqueeze(2)
    by_anchor = logits.unflatten(1, (class_targets.shape[-1], -1))
    return by_anchor.masked_fill(ignored, _NEVER).flatten(1, 2)


def _chunks(logits: Tensor, slope: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both tensors in the same pieces, as they lie in memory."""
    if not runs_eagerly_on_cpu(logits):
        return [(logits, slope)]
    if logits.is_contiguous(memory_format=torch.channels_last):
        logits, slope = logits.permute(0, 2, 3, 1), slope.permute(0, 2, 3, 1)
    pieces = logits.reshape(-1).split(_CPU_CHUNK)
    return list(zip(pieces, slope.view(-1).split(_CPU_CHUNK), strict=True))
