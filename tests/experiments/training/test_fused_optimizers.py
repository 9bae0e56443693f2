"""Optimizers named "fused" against those without it, under a loss scaler that skips steps."""

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.settings.hparams import parse_hparams
from experiments.training.optimization import build_optimizer, gradient_clipper
from tests.experiments.launched import run_script

FUSED = ("fusedsgd", "fusedmomentum", "fusednesterov", "fusedadam", "fusedadamw")
STEPS = 8
SKIPPED = {
    "never": set(),
    "the-first": {0},
    "the-first-two": {0, 1},
    "in-the-middle": {3},
    "twice-in-a-row": {4, 5},
    "again-and-again": {0, 1, 3, 6},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 37, 3), nn.BatchNorm2d(37), nn.SiLU(), nn.Flatten(), nn.Linear(37 * 36, 11)
    )


class Training:
    """Float16's steps: scaled losses, unscaled gradients, clipping, a step that may be skipped."""

    def __init__(self, opt: str, **hparams: Any) -> None:
        options = parse_hparams({"opt": opt, "lr": 0.05, **hparams})
        self.model = network()
        self.optimizer = build_optimizer(self.model, options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.clip = gradient_clipper(options, self.model)

    def step(self, number: int, *, overflow: bool) -> None:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(4, 3, 8, 8, generator=generator)
        loss = self.model(images).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if overflow:
            next(self.model.parameters()).grad.view(-1)[number] = float("inf")
        self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            self.clip(self.model.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def resumed_with(self, opt: str) -> "Training":
        """A new process's training, with what a checkpoint keeps of this one."""
        other = Training(opt)
        other.model.load_state_dict(self.model.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.scaler.load_state_dict(self.scaler.state_dict())
        return other


def trained(opt: str, skipped: set[int], **hparams: Any) -> Tensor:
    training = Training(opt, **hparams)
    for number in range(STEPS):
        training.step(number, overflow=number in skipped)
    weights = training.weights()
    assert weights.isfinite().all()
    return weights


@pytest.mark.parametrize("skipped", SKIPPED.values(), ids=SKIPPED)
@pytest.mark.parametrize("opt", FUSED)
def test_a_fused_optimizer_takes_the_unfused_steps(opt: str, skipped: set[int]) -> None:
    unfused = trained(opt.removeprefix("fused"), skipped)
    assert torch.equal(trained(opt, skipped), unfused)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_grad": None},
        {"clip_mode": "value", "clip_grad": 0.01},
        {"clip_mode": "agc", "clip_grad": 0.1},
        {"momentum": 0.0},
        {"weight_decay": 0.0},
    ],
    ids=str,
)
def test_with_other_clipping_and_decay(options: dict[str, Any]) -> None:
    skipped = SKIPPED["again-and-again"]
    assert torch.equal(
        trained("fusedmomentum", skipped, **options), trained("momentum", skipped, **options)
    )


@pytest.mark.parametrize("resumed_at", [0, 1, 2, 5])
def test_resumed_after_skipped_steps(resumed_at: int) -> None:
    skipped = SKIPPED["again-and-again"]
    training = Training("fusedmomentum")
    for number in range(STEPS):
        if number == resumed_at:
            training = training.resumed_with("fusedmomentum")
        training.step(number, overflow=number in skipped)
    assert torch.equal(training.weights(), trained("momentum", skipped))


def test_resumed_from_a_checkpoint_of_the_unfused_optimizer() -> None:
    """A checkpoint says which kernel made it; a resumed run has its own."""
    training = Training("momentum")
    training.step(0, overflow=True)
    training = training.resumed_with("fusedmomentum")
    for number in range(1, STEPS):
        training.step(number, overflow=number == 1)
    assert torch.equal(training.weights(), trained("momentum", {0, 1}))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_torchs_fused_kernels_round_differently(kind: Any) -> None:
    """Why none of them is used: should torch make them equal, they could be."""

    def after_some_steps(fused: bool) -> Tensor:
        torch.manual_seed(0)
        weights = nn.Parameter(torch.randn(999))
        momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind([weights], lr=0.05, **momentum, fused=fused, foreach=False)
        for _ in range(20):
            weights.grad = 1e-2 * torch.randn(999)
            optimizer.step()
        state = [x for x in optimizer.state[weights].values() if isinstance(x, Tensor) and x.dim()]
        return torch.cat([weights.detach(), *state])

    assert not torch.equal(after_some_steps(True), after_some_steps(False))


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("torchrun", 2),
        pytest.param(
            "horovodrun",
            2,
            marks=pytest.mark.skipif(
                importlib.util.find_spec("horovod") is None,
                reason="Horovod is not installed; `make horovod` builds it",
            ),
        ),
    ],
)
def test_ranks_skip_the_same_steps(launcher: str, ranks: int, tmp_path: Path) -> None:
    """Through Determined's own wrappers: Horovod's makes a new optimizer without any state."""
    script = Path(__file__).with_name("fused_ranks.py")
    run_script(script, str(tmp_path), launcher=launcher, ranks=ranks)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["momentum"].isfinite().all()
        assert torch.equal(found["fusedmomentum"], found["momentum"])
