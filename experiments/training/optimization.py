"""Optimizer, learning-rate schedule and gradient clipping: timm's, by hyperparameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from experiments.settings.hparams import HParamError, HParams

# Names that timm gives torch's SGD.
_SGD_NAMES = {"sgd", "momentum", "nesterov"}
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

    A name that begins with "fused" is the optimizer without it. timm's optimizers of these names
    need NVIDIA's apex. torch's own fused kernels round differently from its other ones, and its
    fused SGD must not run under a loss scaler: it makes momentum buffers in uninitialized memory
    at the first step, is called even where gradients overflowed, and takes what the buffers
    hold for momentum at the next step. On a GPU torch steps all parameters in a few launches
    without them.

    Raises:
        HParamError: timm has no optimizer of that name.
    """
    name = hparams.opt.lower().removeprefix("fused")
    if name not in list_optimizers():
        raise HParamError(
            f"opt: timm has no optimizer {hparams.opt!r}; it has {', '.join(list_optimizers())}"
        )
    options: dict[str, Any] = {}
    if hparams.opt_eps is not None and name not in _SGD_NAMES:
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
    """The learning rate of every optimizer step: timm's schedules, as effdet's train.py uses them.

    `epochs` is the length of the schedule, its warm-up included; then come `cooldown_epochs` more
    at the rate that it ends with. (effdet gives step, plateau and constant no cooldown. Here they
    have one too, so that all trials of a search are equally long.)

    effdet sets the rate after every epoch. Here it is set before every update: at the start of an
    epoch it is effdet's, and from there warm-up and annealing move on to the next epoch's rate
    instead of waiting for it. Noise is one factor for a whole epoch, as effdet's is.

    The rate is a function of the step alone, so that a resumed run needs nothing but its position.
    Only plateau depends on the metrics seen so far, which `state_dict` holds.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, hparams: HParams, updates_per_epoch: int
    ) -> None:
        if hparams.sched not in _SCHEDULES:
            raise HParamError(f"sched: is {hparams.sched!r}, must be one of {_SCHEDULES}")
        on_plateau = hparams.sched == "plateau"
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._optimizer = optimizer
        self._updates_per_epoch = updates_per_epoch
        self._warmup_updates = hparams.warmup_epochs * updates_per_epoch
        self._plateau = (
            ReduceLROnPlateau(
                _rate_holder(rates),
                mode="max",
                factor=hparams.decay_rate,
                patience=hparams.patience_epochs,
                min_lr=hparams.min_lr,
            )
            if on_plateau
            else None
        )
        # Before noise. Of plateau, the warm-up only.
        self._annealing, _ = create_scheduler_v2(
            _rate_holder(rates),
            sched="constant" if on_plateau else hparams.sched,
            num_epochs=hparams.epochs,
            cooldown_epochs=hparams.cooldown_epochs,
            decay_epochs=hparams.decay_epochs,
            decay_rate=hparams.decay_rate,
            min_lr=hparams.min_lr,
            warmup_lr=hparams.warmup_lr,
            warmup_epochs=hparams.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        # A schedule that is 1 but for its noise.
        self._noise, _ = create_scheduler_v2(
            _rate_holder([1.0]),
            sched="constant",
            num_epochs=hparams.epochs,
            noise=hparams.lr_noise,
            noise_pct=hparams.lr_noise_pct,
            noise_std=hparams.lr_noise_std,
            noise_seed=hparams.seed,
        )
        # effdet never steps its schedule before the first epoch, and timm's plateau has no noise
        # in its warm-up.
        self._last_epoch_without_noise = hparams.warmup_epochs if on_plateau else 0

    def set(self, step: int) -> float:
        """Set the learning rate of optimizer step `step` (from 0) and return it."""
        factor = self._noise_factor(step // self._updates_per_epoch)
        groups = self._optimizer.param_groups
        for group, rate in zip(groups, self._rates_before_noise(step), strict=True):
            group["lr"] = rate * factor
        return float(groups[0]["lr"])

    def _rates_before_noise(self, step: int) -> list[float]:
        """The rate of every parameter group."""
        if self._plateau is not None and step >= self._warmup_updates:
            return [float(rate) for rate in self._plateau.get_last_lr()]
        self._annealing.step_update(step)
        return [float(group["lr"]) for group in self._annealing.optimizer.param_groups]

    def _noise_factor(self, epoch: int) -> float:
        """What all of an epoch's rates are multiplied by."""
        if epoch <= self._last_epoch_without_noise:
            return 1.0
        self._noise.step(epoch)
        return float(self._noise.optimizer.param_groups[0]["lr"])

    def validated(self, step: int, metric: float) -> None:
        """Tell a plateau schedule the validation metric (more is better) after `step` steps."""
        if self._plateau is not None and step > self._warmup_updates:
            self._plateau.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """What the position does not tell: a plateau's memory."""
        return {"plateau": self._plateau.state_dict()} if self._plateau is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self._plateau is None or not state:
            return
        self._plateau.load_state_dict(state["plateau"])
        groups = self._plateau.optimizer.param_groups
        for group, rate in zip(groups, self._plateau.get_last_lr(), strict=True):
            group["lr"] = rate


def _rate_holder(rates: list[float]) -> torch.optim.Optimizer:
    """An optimizer of nothing with a parameter group for every rate.

    Schedulers keep their rates in an optimizer. In one of their own the rates stay free of noise,
    and a checkpoint's, which has it, does not get there.
    """
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates])


def gradient_clipper(
    hparams: HParams, model: nn.Module
) -> Callable[[Iterable[Tensor]], None] | None:
    """A function that clips the parameters' gradients in place; None where they are left.

    Adaptive clipping leaves the prediction layers out, as it does the last layer of a classifier
    (Brock et al., High-Performance Large-Scale Image Recognition, section 4.1).
    """
    limit = hparams.clip_grad
    if limit is None:
        return None
    left_out = set()
    if hparams.clip_mode == "agc":
        left_out = {id(p) for name, p in model.named_parameters() if "predict" in name.split(".")}

    def clip(parameters: Iterable[Tensor]) -> None:
        clipped = [parameter for parameter in parameters if id(parameter) not in left_out]
        dispatch_clip_grad(clipped, limit, mode=hparams.clip_mode)

    return clip
