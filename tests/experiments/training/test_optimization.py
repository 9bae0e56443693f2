"""Optimizers by name, clipping, and linear scaling."""

import math

import pytest
import torch
from timm.utils import dispatch_clip_grad
from torch import nn

from experiments.settings.hparams import HParamError, parse_hparams
from experiments.training.optimization import build_optimizer, gradient_clipper, scaled_lr
from model import build_detector


@pytest.mark.parametrize(
    ("opt", "kind"),
    [
        ("fusedmomentum", torch.optim.SGD),
        ("momentum", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("fusedadamw", torch.optim.AdamW),
    ],
)
def test_optimizers_by_name(opt: str, kind: type) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer(
        model, parse_hparams({"opt": opt, "lr": 0.1, "weight_decay": 0.01, "opt_eps": 0.002})
    )
    assert isinstance(optimizer, kind)
    assert not optimizer.defaults["fused"]
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


def test_unknown_optimizers_are_refused_by_name() -> None:
    with pytest.raises(HParamError, match=r"opt: .*'sdg'.*adamw"):
        build_optimizer(nn.Linear(2, 2), parse_hparams({"opt": "sdg"}))


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
    model = nn.ParameterList(parameters)
    clip = gradient_clipper(parse_hparams({"clip_grad": 0.5, "clip_mode": mode}), model)
    assert clip is not None
    clip(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    if mode == "norm":
        assert math.sqrt(sum(float(g.square().sum()) for g in grads)) == pytest.approx(0.5)
    elif mode == "value":
        assert max(float(g.abs().max()) for g in grads) == 0.5
    else:  # Brock et al., High-Performance Large-Scale Image Recognition, equation 3, by rows
        assert torch.allclose(grads[0].norm(dim=1), 0.5 * parameters[0].detach().norm(dim=1))
    assert gradient_clipper(parse_hparams({"clip_grad": None}), model) is None


def test_adaptive_clipping_leaves_the_prediction_layers_out() -> None:
    """As effdet's train.py does, which clips all parameters without "predict" in their names."""
    detector, peer = build_detector("tiny", 3), build_detector("tiny", 3)
    peer.load_state_dict(detector.state_dict())
    generator = torch.Generator().manual_seed(0)
    for one, other in zip(detector.parameters(), peer.parameters(), strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    clip = gradient_clipper(parse_hparams({"clip_grad": 0.01, "clip_mode": "agc"}), detector)
    assert clip is not None
    clip(detector.parameters())
    clipped = [p for name, p in peer.named_parameters() if "predict" not in name]
    dispatch_clip_grad(clipped, 0.01, mode="agc")
    for (name, one), other in zip(detector.named_parameters(), peer.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad), name
