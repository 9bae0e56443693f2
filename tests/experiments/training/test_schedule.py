"""The learning rate against timm's schedules, stepped as effdet's train.py steps them."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from experiments.settings.hparams import HParams, parse_hparams
from experiments.training.optimization import Schedule

UPDATES = 10  # per epoch
PEAK = 0.1
PURE = ("cosine", "tanh", "step", "poly", "constant")  # of the step alone
NOISES = (None, [0.4, 0.9], [0.25], 0.5, 0.0, [0.0, 1.0])


def _optimizer() -> torch.optim.Optimizer:
    """Two groups of parameters, as training has with and without weight decay."""
    groups = [{"params": [nn.Parameter(torch.zeros(3))]} for _ in range(2)]
    return torch.optim.SGD(groups, lr=PEAK)


def _hparams(**changes: Any) -> HParams:
    values = {
        "epochs": 20,
        "warmup_epochs": 3,
        "cooldown_epochs": 2,
        "lr": PEAK,
        "decay_epochs": 5,
        "decay_rate": 0.3,
        "lr_noise": None,
    }
    return parse_hparams({**values, **changes})


def _peer(
    optimizer: torch.optim.Optimizer, hparams: HParams, **changes: Any
) -> tuple[Scheduler, int]:
    """What timm makes of the same settings, and how many epochs effdet would train."""
    options: dict[str, Any] = {
        "sched": hparams.sched,
        "num_epochs": hparams.epochs,
        "warmup_epochs": hparams.warmup_epochs,
        "warmup_lr": hparams.warmup_lr,
        "min_lr": hparams.min_lr,
        "cooldown_epochs": hparams.cooldown_epochs,
        "patience_epochs": hparams.patience_epochs,
        "decay_epochs": hparams.decay_epochs,
        "decay_rate": hparams.decay_rate,
        "noise": hparams.lr_noise,
        "noise_pct": hparams.lr_noise_pct,
        "noise_std": hparams.lr_noise_std,
        "noise_seed": hparams.seed,
    }
    scheduler, epochs = create_scheduler_v2(optimizer, **{**options, **changes})
    return scheduler, epochs


def _rates_of_the_peer(hparams: HParams, metrics: list[float], **changes: Any) -> list[float]:
    """The rate of each epoch: effdet's train.py steps its schedule after every one."""
    optimizer = _optimizer()
    scheduler, _ = _peer(optimizer, hparams, **changes)
    rates = []
    for epoch in range(hparams.total_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1, metrics[epoch])
    return rates


@pytest.mark.parametrize("sched", PURE)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("warmup", [0, 2.5, 3])
def test_an_epoch_begins_at_the_rate_that_timm_gives_it(
    sched: str, noise: float | list[float] | None, warmup: float
) -> None:
    hparams = _hparams(sched=sched, lr_noise=noise, warmup_epochs=warmup)
    schedule = Schedule(_optimizer(), hparams, UPDATES)
    rates = [schedule.set(epoch * UPDATES) for epoch in range(hparams.total_epochs)]
    expected = _rates_of_the_peer(hparams, [0.0] * hparams.total_epochs)
    # Without a warm-up the peer's first epoch has the peak; a tanh begins .8 millionths below it.
    assert rates[0] == pytest.approx(expected[0], rel=1e-6)
    assert rates[1:] == pytest.approx(expected[1:], rel=1e-12)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_plateau_has_timms_rates(noise: float | list[float] | None, warmup: int) -> None:
    """Over 300 epochs, in which the metric improves, stands still and improves again.

    Whole epochs of warm-up: after a part of one, timm stays at the last rate below the peak.
    """
    hparams = _hparams(
        sched="plateau", epochs=300, patience_epochs=30, lr_noise=noise, warmup_epochs=warmup
    )
    metrics = [
        min(epoch, 40) / 100 + max(epoch - 150, 0) / 1000 + 0.01 * math.sin(epoch)
        for epoch in range(hparams.total_epochs)
    ]
    schedule = Schedule(_optimizer(), hparams, UPDATES)
    rates = []
    for epoch, metric in enumerate(metrics):
        rates.append([schedule.set(epoch * UPDATES + update) for update in range(UPDATES)])
        schedule.validated((epoch + 1) * UPDATES, metric)
    expected = _rates_of_the_peer(hparams, metrics)
    whole = [rates[0] for rates in rates]
    assert whole == pytest.approx(expected, rel=1e-12)
    assert whole[60] > whole[110] > hparams.min_lr * 2
    assert all(len(set(inside)) == 1 for inside in rates[warmup:])


@pytest.mark.parametrize("sched", PURE)
def test_between_epochs_the_rate_moves_on_by_the_update(sched: str) -> None:
    """timm's other way of stepping, from the warm-up's first update to the cooldown's last."""
    hparams = _hparams(sched=sched)
    schedule = Schedule(_optimizer(), hparams, UPDATES)
    optimizer = _optimizer()
    peer, _ = _peer(optimizer, hparams, step_on_epochs=False, updates_per_epoch=UPDATES)
    for step in range(hparams.total_epochs * UPDATES):
        peer.step_update(step)
        assert schedule.set(step) == optimizer.param_groups[0]["lr"]


def test_noise_is_one_factor_for_an_epoch() -> None:
    """const.yaml's: timm's factors, from .33 to 1.67, in epochs 120 to 269 of 300."""
    settings_of_const = {"epochs": 300, "cooldown_epochs": 10, "warmup_epochs": 5}
    noisy = _hparams(**settings_of_const, lr_noise=[0.4, 0.9])
    plain = _hparams(**settings_of_const)
    schedules = [Schedule(_optimizer(), hparams, UPDATES) for hparams in (noisy, plain)]
    peers = [_rates_of_the_peer(hparams, [0.0] * 310) for hparams in (noisy, plain)]
    found = []
    for epoch in range(310):
        steps = range(epoch * UPDATES, (epoch + 1) * UPDATES)
        factors = [schedules[0].set(step) / schedules[1].set(step) for step in steps]
        assert factors == pytest.approx([peers[0][epoch] / peers[1][epoch]] * UPDATES, rel=1e-12)
        found.append(factors[0])
    assert [epoch for epoch, factor in enumerate(found) if factor != 1] == list(range(120, 270))
    assert 0.33 < min(found) < 0.4
    assert 1.6 < max(found) < 1.67


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly"])
def test_a_run_is_as_long_as_effdets(sched: str) -> None:
    """All of `epochs` are annealed; the cooldown comes on top, at the lowest rate."""
    hparams = _hparams(sched=sched)
    assert hparams.total_epochs == _peer(_optimizer(), hparams)[1] == 22
    schedule = Schedule(_optimizer(), hparams, UPDATES)
    assert schedule.set(20 * UPDATES - 1) > hparams.min_lr
    for step in range(20 * UPDATES, 22 * UPDATES):
        assert schedule.set(step) == hparams.min_lr


def test_plateau_warms_up_by_the_update() -> None:
    schedule = Schedule(_optimizer(), _hparams(sched="plateau", warmup_epochs=2), UPDATES)
    warm = [schedule.set(step) for step in range(2 * UPDATES + 1)]
    assert warm == pytest.approx([1e-4 + (PEAK - 1e-4) * step / 20 for step in range(21)])


_schedules = st.fixed_dictionaries(
    {
        "sched": st.sampled_from((*PURE, "plateau")),
        "epochs": st.integers(2, 40),
        "warmup_epochs": st.sampled_from([0, 0.3, 1, 1.9]),
        "cooldown_epochs": st.integers(0, 12),
        "patience_epochs": st.integers(0, 5),
        "decay_epochs": st.floats(1, 90),
        "decay_rate": st.floats(0.05, 0.95),
        "lr_noise": st.one_of(
            st.none(),
            st.floats(0, 1),
            st.lists(st.floats(0, 1), min_size=1, max_size=2).map(sorted),
        ),
        "seed": st.integers(0, 2**31),
    }
)


@settings(deadline=None, max_examples=100)
@given(values=_schedules, updates=st.integers(1, 4), period=st.integers(1, 9), data=st.data())
def test_every_schedule_is_walked_to_its_last_step(
    values: dict[str, Any], updates: int, period: int, data: st.DataObject
) -> None:
    """Every rate is positive and within the noise of the peak; a resumed run has the same ones."""
    hparams = _hparams(**values)
    steps = hparams.total_epochs * updates
    resumed_at = data.draw(st.integers(0, steps - 1), label="resumed at")
    metrics = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=6), label="metrics")

    def walk(schedule: Schedule, first: int) -> tuple[list[float], Any]:
        rates, state = [], None
        for step in range(first, steps):
            if step == resumed_at:
                state = copy.deepcopy((schedule.state_dict(), optimizer.state_dict()))
            rates.append(schedule.set(step))
            if (step + 1) % period == 0:
                schedule.validated(step + 1, metrics[step // period % len(metrics)])
        return rates, state

    optimizer = _optimizer()
    rates, (schedule_state, optimizer_state) = walk(Schedule(optimizer, hparams, updates), 0)
    highest = PEAK * (1 + hparams.lr_noise_pct)
    assert all(0 < rate < highest for rate in rates)
    assert all(group["lr"] == rates[-1] for group in optimizer.param_groups)

    optimizer = _optimizer()
    resumed = Schedule(optimizer, hparams, updates)
    optimizer.load_state_dict(optimizer_state)
    resumed.load_state_dict(schedule_state)
    assert walk(resumed, resumed_at)[0] == rates[resumed_at:]
    if hparams.sched != "plateau":
        assert Schedule(_optimizer(), hparams, updates).set(resumed_at) == rates[resumed_at]
