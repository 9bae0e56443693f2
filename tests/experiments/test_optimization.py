"""Schedules against timm's own, optimizers by name, clipping, and linear scaling."""

import math

import pytest
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn

from experiments.hparams import HParamError, parse_hparams
from experiments.optimization import Schedule, build_optimizer, gradient_clipper, scaled_lr

UPDATES = 10  # per epoch


def _optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=lr)


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "poly"])
@pytest.mark.parametrize("noise", [None, [0.4, 0.9]])
def test_learning_rates_are_timms(sched: str, noise: list[float] | None) -> None:
    values = {
        "sched": sched,
        "epochs": 20,
        "warmup_epochs": 3,
        "cooldown_epochs": 2,
        "lr": 0.1,
        "decay_epochs": 5,
        "decay_rate": 0.3,
        "lr_noise": noise,
    }
    optimizer = _optimizer()
    schedule = Schedule(optimizer, parse_hparams(values), UPDATES)
    peer_optimizer = _optimizer()
    peer, epochs = create_scheduler_v2(
        peer_optimizer,
        sched=sched,
        num_epochs=20,
        warmup_epochs=3,
        warmup_lr=1e-4,
        min_lr=1e-5,
        cooldown_epochs=2,
        decay_epochs=5,
        decay_rate=0.3,
        noise=noise,
        noise_seed=42,
        step_on_epochs=False,
        updates_per_epoch=UPDATES,
    )
    assert epochs == 22 or sched == "step"
    for step in range(22 * UPDATES):
        peer.step_update(step)
        assert schedule.set(step) == peer_optimizer.param_groups[0]["lr"]


def test_cooldown_is_held_at_the_lowest_rate() -> None:
    schedule = Schedule(
        _optimizer(), parse_hparams({"epochs": 20, "cooldown_epochs": 4, "lr": 0.1}), UPDATES
    )
    assert schedule.set(20 * UPDATES - 1) > 1e-5
    for step in range(20 * UPDATES, 24 * UPDATES):
        assert schedule.set(step) == 1e-5


def test_a_rate_does_not_depend_on_how_a_run_got_there() -> None:
    hparams = parse_hparams({"epochs": 20, "lr": 0.1, "lr_noise": [0.1, 0.9]})
    walked = Schedule(_optimizer(), hparams, UPDATES)
    rates = [walked.set(step) for step in range(150)]
    jumped = Schedule(_optimizer(), hparams, UPDATES)
    assert jumped.set(149) == rates[149]
    assert jumped.set(77) == rates[77]


def test_plateau_warms_up_then_follows_the_metric_and_survives_a_resume() -> None:
    hparams = parse_hparams(
        {
            "sched": "plateau",
            "epochs": 50,
            "warmup_epochs": 2,
            "cooldown_epochs": 0,
            "lr": 0.1,
            "patience_epochs": 1,
            "decay_rate": 0.1,
        }
    )
    schedule = Schedule(_optimizer(), hparams, UPDATES)
    warm = [schedule.set(step) for step in range(2 * UPDATES)]
    assert warm == sorted(warm)
    assert warm[0] == pytest.approx(1e-4)
    assert warm[10] == pytest.approx((0.1 + 1e-4) / 2)

    optimizer = _optimizer()
    schedule = Schedule(optimizer, hparams, UPDATES)
    rates = []
    for epoch in range(3, 12):
        schedule.validated(epoch * UPDATES, 0.5)
        rates.append(schedule.set(epoch * UPDATES))
        if epoch == 6:
            resumed_optimizer = _optimizer()
            resumed = Schedule(resumed_optimizer, hparams, UPDATES)
            resumed_optimizer.load_state_dict(optimizer.state_dict())
            resumed.load_state_dict(schedule.state_dict())
            later = []
        if epoch > 6:
            resumed.validated(epoch * UPDATES, 0.5)
            later.append(resumed.set(epoch * UPDATES))
    assert rates[-1] < rates[0]
    assert later == rates[4:]


@pytest.mark.parametrize(
    ("opt", "kind", "fused"),
    [
        ("fusedmomentum", torch.optim.SGD, None),
        ("momentum", torch.optim.SGD, None),
        ("adam", torch.optim.Adam, None),
        ("adamw", torch.optim.AdamW, None),
        ("fusedadamw", torch.optim.AdamW, None),
    ],
)
def test_optimizers_by_name(opt: str, kind: type, fused: bool | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer(
        model, parse_hparams({"opt": opt, "lr": 0.1, "weight_decay": 0.01, "opt_eps": 0.002})
    )
    assert isinstance(optimizer, kind)
    assert optimizer.defaults.get("fused") == fused  # fused kernels are for GPUs
    assert optimizer.defaults["lr"] == 0.1
    if kind is torch.optim.SGD:
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, False)
    else:
        assert optimizer.defaults["eps"] == 0.002
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decays[id(model[0].weight)] == 0.01
    assert decays[id(model[0].bias)] == decays[id(model[1].weight)] == 0.0


def test_unknown_optimizers_and_schedules_are_refused_by_name() -> None:
    with pytest.raises(HParamError, match=r"opt: .*'sdg'.*adamw"):
        build_optimizer(nn.Linear(2, 2), parse_hparams({"opt": "sdg"}))
    with pytest.raises(HParamError, match=r"sched: is 'cosin'"):
        Schedule(_optimizer(), parse_hparams({"sched": "cosin"}), UPDATES)


def test_linear_scaling() -> None:
    assert scaled_lr(parse_hparams({"lr": 0.03, "global_batch_size": 64})) == 0.03
    assert scaled_lr(
        parse_hparams({"lr": 0.03, "global_batch_size": 64, "lr_base_batch": 16})
    ) == pytest.approx(0.12)


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clipping(mode: str) -> None:
    parameters = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    clip = gradient_clipper(parse_hparams({"clip_grad": 0.5, "clip_mode": mode}))
    assert clip is not None
    clip(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    if mode == "norm":
        assert math.sqrt(sum(float(g.square().sum()) for g in grads)) == pytest.approx(0.5)
    elif mode == "value":
        assert max(float(g.abs().max()) for g in grads) == 0.5
    else:  # Brock et al., High-Performance Large-Scale Image Recognition, equation 3, by rows
        assert torch.allclose(grads[0].norm(dim=1), 0.5 * parameters[0].detach().norm(dim=1))
    assert gradient_clipper(parse_hparams({"clip_grad": None})) is None
