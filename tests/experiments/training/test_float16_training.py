"""Training in float16 with loss scaling, on a processor: three recipes next to float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from experiments.training.trial import EfficientDetTrial
from tests.experiments.launched import ROOT
from tests.experiments.local_trial import local_trial

STEPS = 120
BATCHES_PER_EPOCH = 20  # so that STEPS cover the warm-up and more
SMALL: dict[str, Any] = {
    "model": "tiny",
    "image_size": 64,
    "pretrained_backbone": False,
    "global_batch_size": 8,
    "input_threads": 1,
}
# What a recipe says of the optimizer and of precision; the searched ones have a value of each.
OPTIMIZER = (
    *("opt", "lr", "momentum", "opt_eps", "weight_decay", "clip_grad", "epochs", "sched"),
    *("lr_noise", "lr_noise_pct", "lr_noise_std", "warmup_epochs", "warmup_lr", "min_lr"),
    *("cooldown_epochs", "decay_epochs", "decay_rate", "amp", "amp_dtype", "min_loss_scale"),
)
SEARCHED = {"lr": 0.005, "weight_decay": 4e-4, "clip_grad": 7.0, "min_loss_scale": 32.0}


def recipe(file: str, **searched: Any) -> dict[str, Any]:
    """A recipe's own settings of the optimizer."""
    values = yaml.safe_load((ROOT / "experiments" / file).read_text())["hyperparameters"]
    return {name: searched.get(name, values[name]) for name in OPTIMIZER}


def train(trial: EfficientDetTrial, steps: int, first: int = 0) -> list[float]:
    """Train on the mini data and give the loss of each step."""
    losses: list[Tensor] = []
    context: Any = trial.context
    reducer: Any = trial.training_metrics
    reducer.update = lambda loss, *_: losses.append(loss)
    trial.detector.train()
    loader: Any = trial.build_training_data_loader()
    for step, batch in zip(range(first, first + steps), loader, strict=False):
        context._current_batch_idx = step  # as the trainer counts
        trial.train_batch(batch, epoch_idx=0, batch_idx=step)
    loader.close()
    return [float(loss) for loss in losses]


def weights(trial: EfficientDetTrial) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trial.detector.parameters()])


def scale_of(trial: EfficientDetTrial) -> float:
    assert trial.scaler is not None
    return trial.scaler.get_scale()


def start_at_scale(trial: EfficientDetTrial, scale: float) -> None:
    assert trial.scaler is not None
    trial.scaler.load_state_dict({**trial.scaler.state_dict(), "scale": scale})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "searched"),
    [
        ("const.yaml", {}),
        ("distributed.yaml", {}),
        ("adaptive.yaml", {**SEARCHED, "opt": "adamw", "sched": "tanh"}),
    ],
)
def test_a_recipe_learns_in_float16_as_in_float32(
    file: str, searched: dict[str, Any], mini_coco: Path
) -> None:
    """After a start at a scale that overflows, the losses come to within a tenth of float32's."""
    settings = {**recipe(file, **searched), **SMALL}
    assert settings["amp_dtype"] == "auto"
    with local_trial(mini_coco, BATCHES_PER_EPOCH, **settings) as trial:
        assert trial.run.numerics.precision == "float16"
        start_at_scale(trial, 2.0**26)
        half = train(trial, STEPS)
        assert 2.0**10 <= scale_of(trial) < 2.0**26
        assert weights(trial).isfinite().all()
    with local_trial(
        mini_coco, BATCHES_PER_EPOCH, **{**settings, "amp": False, "min_loss_scale": None}
    ) as trial:
        single = train(trial, STEPS)
    assert len(half) == len(single) == STEPS
    # A batch's loss depends on its images, so means of 40 batches are compared.
    means = [sum(losses[-40:]) / 40 for losses in (half, single)]
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert sum(half[-40:]) < 0.7 * sum(half[:40])


def test_the_loss_scale_is_held_at_its_floor(mini_coco: Path) -> None:
    """Where every step overflows, the scale stays and no weight moves."""
    floor = 2.0**60
    settings = {**recipe("const.yaml"), **SMALL, "min_loss_scale": floor}
    with local_trial(mini_coco, BATCHES_PER_EPOCH, **settings) as trial:
        before = weights(trial)
        train(trial, 3)
        assert scale_of(trial) == floor
        assert torch.equal(weights(trial), before)


def test_steps_skipped_at_the_start_leave_nothing_behind(mini_coco: Path) -> None:
    """The scale is halved until it fits; weights then move as from a fresh start."""
    settings = {**recipe("const.yaml"), **SMALL}
    with local_trial(mini_coco, BATCHES_PER_EPOCH, **settings) as trial:
        before = weights(trial)
        start_at_scale(trial, 2.0**60)
        train(trial, 4)
        assert scale_of(trial) == 2.0**56
        assert torch.equal(weights(trial), before)
        start_at_scale(trial, 2.0**10)
        train(trial, 1, first=4)
        moved = (weights(trial) - before).abs().max()
        assert 0 < moved < 0.01


def test_resumed_in_float16(mini_coco: Path) -> None:
    """With what a checkpoint keeps, the next steps are those of the run that went on."""
    settings = {**recipe("const.yaml"), **SMALL}
    with local_trial(mini_coco, BATCHES_PER_EPOCH, **settings) as trial:
        start_at_scale(trial, 2.0**60)
        train(trial, 2)
        start_at_scale(trial, 2.0**10)
        train(trial, 3, first=2)
        assert trial.scaler is not None
        kept = {
            "model": {k: v.clone() for k, v in trial.detector.state_dict().items()},
            "optimizer": trial.optimizer.state_dict(),
            "scaler": trial.scaler.state_dict(),
        }
        kept["optimizer"] = torch.utils._pytree.tree_map(
            lambda x: x.clone() if isinstance(x, Tensor) else x, kept["optimizer"]
        )
        straight = train(trial, 3, first=5)
        end = weights(trial)
    with local_trial(mini_coco, BATCHES_PER_EPOCH, **settings) as trial:
        trial.detector.load_state_dict(kept["model"])
        trial.optimizer.load_state_dict(kept["optimizer"])
        assert trial.scaler is not None
        trial.scaler.load_state_dict(kept["scaler"])
        trial.position = 5
        assert train(trial, 3, first=5) == straight
        assert torch.equal(weights(trial), end)
