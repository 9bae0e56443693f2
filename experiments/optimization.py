"""Optimizer, learning-rate schedule and gradient clipping: timm's, by hyperparameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import PlateauLRScheduler, create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from experiments.hparams import HParamError, HParams

# torch's own optimizers have fused kernels; timm's "fused" names would need NVIDIA's apex instead.
_TORCH_FUSED = {"sgd", "momentum", "nesterov", "adam", "adamw"}
_SCHEDULES = ("cosine", "tanh", "step", "plateau", "poly", "constant")


def scaled_lr(hparams: HParams) -> float:
    """The peak learning rate: linear in the global batch size if lr_base_batch says so.

    Goyal et al., Accurate, Large Minibatch SGD, section 2.1.
    """
    if hparams.lr_base_batch is None:
        return hparams.lr
    return hparams.lr * hparams.global_batch_size / hparams.lr_base_batch


def build_optimizer(model: nn.Module, hparams: HParams) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters; biases and norms are not decayed.

    Raises:
        HParamError: timm has no optimizer of that name.
    """
    name = hparams.opt.lower()
    options: dict[str, Any] = {}
    if name.startswith("fused"):
        name = name.removeprefix("fused")
        # On a CPU the fused kernels take a step that float16's loss scaling wants skipped.
        if name in _TORCH_FUSED and next(model.parameters()).is_cuda:
            options["fused"] = True
    if name not in list_optimizers():
        raise HParamError(
            f"opt: timm has no optimizer {hparams.opt!r}; it has {', '.join(list_optimizers())}"
        )
    if hparams.opt_eps is not None and name not in {"sgd", "momentum", "nesterov"}:
        options["eps"] = hparams.opt_eps
    return create_optimizer_v2(
        model,
        opt=name,
        lr=scaled_lr(hparams),
        weight_decay=hparams.weight_decay,
        momentum=hparams.momentum,
        **options,
    )


class Schedule:
    """The learning rate as a function of the optimizer step.

    All schedules but plateau are pure functions of the step, so that a resumed run needs nothing
    but its position. `epochs` is the length of the schedule; then come `cooldown_epochs` more at
    the rate that it ends with.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, hparams: HParams, updates_per_epoch: int
    ) -> None:
        if hparams.sched not in _SCHEDULES:
            raise HParamError(f"sched: is {hparams.sched!r}, must be one of {_SCHEDULES}")
        self._optimizer = optimizer
        self._updates_per_epoch = updates_per_epoch
        self._on_plateau = hparams.sched == "plateau"
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=hparams.sched,
            num_epochs=hparams.epochs,
            decay_epochs=hparams.decay_epochs,
            cooldown_epochs=hparams.cooldown_epochs,
            patience_epochs=hparams.patience_epochs,
            decay_rate=hparams.decay_rate,
            min_lr=hparams.min_lr,
            warmup_lr=hparams.warmup_lr,
            warmup_epochs=hparams.warmup_epochs,
            noise=hparams.lr_noise,
            noise_pct=hparams.lr_noise_pct,
            noise_std=hparams.lr_noise_std,
            noise_seed=hparams.seed,
            step_on_epochs=self._on_plateau,
            updates_per_epoch=updates_per_epoch,
        )

    def set(self, step: int) -> float:
        """Set the learning rate of optimizer step `step` (from 0) and return it."""
        if not self._on_plateau:
            self._scheduler.step_update(step)
        elif step < self._scheduler.warmup_t * self._updates_per_epoch:
            # In its warm-up the plateau schedule is a line over epochs, here fractions of them.
            self._scheduler.step(step / self._updates_per_epoch)
        return float(self._optimizer.param_groups[0]["lr"])

    def validated(self, step: int, metric: float) -> None:
        """Tell a plateau schedule the validation metric (more is better) after `step` steps."""
        epoch = step / self._updates_per_epoch
        if self._on_plateau and epoch > self._scheduler.warmup_t:
            self._scheduler.step(epoch, metric)

    def state_dict(self) -> dict[str, Any]:
        """What the position does not tell: a plateau's memory."""
        if not isinstance(self._scheduler, PlateauLRScheduler):
            return {}
        return {
            "plateau": self._scheduler.lr_scheduler.state_dict(),
            "restore_lr": self._scheduler.restore_lr,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if isinstance(self._scheduler, PlateauLRScheduler) and state:
            self._scheduler.lr_scheduler.load_state_dict(state["plateau"])
            self._scheduler.restore_lr = state["restore_lr"]


def gradient_clipper(hparams: HParams) -> Callable[[Iterable[Tensor]], None] | None:
    """A function that clips the parameters' gradients in place; None where they are left."""
    limit = hparams.clip_grad
    if limit is None:
        return None

    def clip(parameters: Iterable[Tensor]) -> None:
        dispatch_clip_grad(list(parameters), limit, mode=hparams.clip_mode)

    return clip
