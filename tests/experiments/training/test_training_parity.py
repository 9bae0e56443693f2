"""Fifty steps of training against effdet 0.4.1's own bench, optimizer, clipping and average.

In float64 up to the loss: from random weights, batch norms over two values at the coarsest level
double what float32 rounds off every few steps, and after fifty that would hide a mistake. Here all
that differs after fifty steps is below 1e-7.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from effdet import EfficientDet as PeerDetector
from effdet.bench import DetBenchTrain
from effdet.config import get_efficientdet_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import ModelEmaV2, dispatch_clip_grad
from torch import Tensor

from experiments.input import Batch
from experiments.training.trial import EfficientDetTrial, step_seed
from tests.experiments.local_trial import local_trial

STEPS = 50
SIZE = (128, 128)
BATCH = 2


def generated_batch(step: int, num_classes: int) -> Batch:
    """Noise with up to four boxes an image, as the trial's loader would hand it over."""
    generator = torch.Generator().manual_seed(step)
    corner = torch.rand(BATCH, 4, 2, generator=generator) * 90
    sides = 8 + torch.rand(BATCH, 4, 2, generator=generator) * 60
    labels = torch.randint(1, num_classes + 1, (BATCH, 4), generator=generator)
    labels[0, 1 + step % 4 :] = -1
    return {
        "image": torch.randn(BATCH, 3, *SIZE, generator=generator, dtype=torch.float64),
        "boxes": torch.cat([corner, corner + sides], dim=-1),
        "labels": labels,
        "box_count": (labels > 0).sum(1),
    }


class Peer:
    """One training step as effdet's train.py takes it."""

    def __init__(self, weights: dict[str, Tensor], num_classes: int, options: Namespace) -> None:
        config = get_efficientdet_config("efficientdet_d0")
        config.update({"image_size": SIZE, "num_classes": num_classes})
        model = PeerDetector(config, pretrained_backbone=False)
        model.load_state_dict(weights, strict=True)
        self.bench = DetBenchTrain(model).train()
        self.options = options
        self.optimizer = create_optimizer_v2(self.bench, **optimizer_kwargs(cfg=options))
        self.ema = ModelEmaV2(self.bench, decay=options.model_ema_decay)

    def step(self, batch: Batch, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        target = {"bbox": batch["boxes"], "cls": batch["labels"]}
        loss = self.bench(batch["image"], target)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        dispatch_clip_grad(
            self.bench.parameters(), self.options.clip_grad, mode=self.options.clip_mode
        )
        self.optimizer.step()
        self.ema.update(self.bench)


def largest_differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor, relative to its largest value."""
    assert ours.keys() == theirs.keys()
    return {
        name: float((ours[name] - x).abs().max() / x.abs().max().clamp(min=1e-3))
        for name, x in theirs.items()
        if x.is_floating_point()
    }


def train_both(trial: EfficientDetTrial, peer: Peer) -> None:
    num_classes = trial.detector.config.num_classes
    context: Any = trial.context
    for step in range(STEPS):
        batch = generated_batch(step, num_classes)
        context._current_batch_idx = step  # as the trainer counts
        lr = trial.train_batch(batch, epoch_idx=0, batch_idx=step)["lr"]
        torch.manual_seed(step_seed(trial.hparams.seed, step, rank=0))  # of stochastic depth
        peer.step(batch, lr)


@pytest.mark.slow
def test_fifty_steps_of_warm_up_end_in_effdets_weights(mini_coco: Path) -> None:
    with local_trial(
        mini_coco,
        batches_per_epoch=7393,  # COCO's, so that all steps lie at the foot of the warm-up
        model="efficientdet_d0",
        image_size=list(SIZE),
        pretrained_backbone=False,
        amp=False,
        global_batch_size=BATCH,
        model_ema_decay=0.98,  # so that the average has moved after fifty steps
    ) as trial:
        trial.detector.train()
        hparams = trial.hparams
        before = {name: x.clone() for name, x in trial.detector.state_dict().items()}
        options = Namespace(
            opt="momentum",
            opt_eps=None,
            lr=hparams.lr,
            momentum=hparams.momentum,
            weight_decay=hparams.weight_decay,
            clip_grad=hparams.clip_grad,
            clip_mode=hparams.clip_mode,
            model_ema_decay=hparams.model_ema_decay,
        )
        peer = Peer(before, trial.detector.config.num_classes, options)
        assert trial.ema is not None
        for module in (trial.detector, trial.ema, peer.bench.model, peer.ema.module.model):
            module.double()
        train_both(trial, peer)

    weights = trial.detector.state_dict()
    averaged = trial.ema.module.state_dict()
    moved = largest_differences(weights, before)
    assert max(moved.values()) > 1e-2
    for ours, theirs in (
        (weights, peer.bench.model.state_dict()),
        (averaged, peer.ema.module.model.state_dict()),
    ):
        found = largest_differences(ours, theirs)
        worst = max(found, key=lambda name: found[name])
        assert found[worst] < 1e-5, (worst, found[worst])
