"""Optimizer, learning-rate schedule and gradient clipping, built with timm."""

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


def scaled_lr(hparams: HParams) -> float:
    """The peak learning rate: linear in the global batch size if lr_base_batch says so.

    Goyal et al., Accurate, Large Minibatch SGD, section 2.1.
    """
    if hparams.lr_base_batch is None:
        return hparams.lr
    return hparams.lr * hparams.global_batch_size / hparams.lr_base_batch


def build_optimizer(model: nn.Module, hparams: HParams) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters; biases and norms have no weight decay.

    A "fused" in front of a name is ignored. timm's optimizers with such names need NVIDIA's apex.
    torch's own fused kernels round differently from its other ones, and its fused SGD must not be
    used with a loss scaler: the first step allocates momentum buffers without initializing them,
    runs even if gradients overflowed, and the next step then reads garbage as momentum. Without
    fused kernels, torch still updates all parameters on a GPU in a few launches.

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

    `epochs` is the length of the schedule including its warm-up. `cooldown_epochs` more follow at
    the final rate. (In effdet, step, plateau and constant have no cooldown. Here they do, so that
    all trials of a search have the same length.)

    effdet sets the rate once per epoch. Here it is set before every update: at the start of an
    epoch it equals effdet's, and during the epoch warm-up and annealing approach the next epoch's
    rate. Noise is one factor per epoch, as in effdet.

    The rate depends on the step alone, so that a resumed run only needs its position. Only plateau
    depends on earlier metrics, which are in `state_dict`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, hparams: HParams, updates_per_epoch: int
    ) -> None:
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
        # Without noise. For plateau, only the warm-up.
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
        # A constant rate of 1 with noise: the noise factor of each epoch.
        self._noise, _ = create_scheduler_v2(
            _rate_holder([1.0]),
            sched="constant",
            num_epochs=hparams.epochs,
            noise=hparams.lr_noise,
            noise_pct=hparams.lr_noise_pct,
            noise_std=hparams.lr_noise_std,
            noise_seed=hparams.seed,
        )
        # effdet does not step its schedule before the first epoch, and timm's plateau has no noise
        # during warm-up.
        self._last_epoch_without_noise = hparams.warmup_epochs if on_plateau else 0

    def set(self, step: int) -> float:
        """Set the learning rate of optimizer step `step` (from 0) and return it."""
        factor = self._noise_factor(step // self._updates_per_epoch)
        groups = self._optimizer.param_groups
        for group, rate in zip(groups, self._rates_before_noise(step), strict=True):
            group["lr"] = rate * factor
        return float(groups[0]["lr"])

    def _rates_before_noise(self, step: int) -> list[float]:
        """The rate of each parameter group."""
        if self._plateau is not None and step >= self._warmup_updates:
            return [float(rate) for rate in self._plateau.get_last_lr()]
        self._annealing.step_update(step)
        return [float(group["lr"]) for group in self._annealing.optimizer.param_groups]

    def _noise_factor(self, epoch: int) -> float:
        """The factor of all rates of an epoch."""
        if epoch <= self._last_epoch_without_noise:
            return 1.0
        self._noise.step(epoch)
        return float(self._noise.optimizer.param_groups[0]["lr"])

    def validated(self, step: int, metric: float) -> None:
        """Give a plateau schedule the validation metric (higher is better) after `step` steps."""
        if self._plateau is not None and step > self._warmup_updates:
            self._plateau.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """The state of plateau, the only one that does not follow from the position."""
        return {"plateau": self._plateau.state_dict()} if self._plateau is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self._plateau is None or not state:
            return
        self._plateau.load_state_dict(state["plateau"])
        groups = self._plateau.optimizer.param_groups
        for group, rate in zip(groups, self._plateau.get_last_lr(), strict=True):
            group["lr"] = rate


def _rate_holder(rates: list[float]) -> torch.optim.Optimizer:
    """A dummy optimizer with one parameter group per rate.

    Schedulers keep their rates in an optimizer. In a separate one, the rates are free of noise and
    are not overwritten with a checkpoint's noisy ones.
    """
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates])


def gradient_clipper(
    hparams: HParams, model: nn.Module
) -> Callable[[Iterable[Tensor]], None] | None:
    """A function that clips gradients in place; None for no clipping.

    Adaptive clipping skips the prediction layers, just as it skips a classifier's last layer
    (Brock et al., High-Performance Large-Scale Image Recognition, section 4.1).
    """
    limit = hparams.clip_grad
    if limit is None:
        return None
    skipped = set()
    if hparams.clip_mode == "agc":
        skipped = {id(p) for name, p in model.named_parameters() if "predict" in name.split(".")}

    def clip(parameters: Iterable[Tensor]) -> None:
        clipped = [parameter for parameter in parameters if id(parameter) not in skipped]
        dispatch_clip_grad(clipped, limit, mode=hparams.clip_mode)

    return clip
