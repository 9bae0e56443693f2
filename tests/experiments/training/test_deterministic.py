"""deterministic: true, on a GPU as far as it can be shown without one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.checkpoints.local import LocalCheckpoints
from experiments.settings.hparams import HParamError, parse_hparams
from experiments.training.detector import build_from_hparams
from experiments.training.trial import EfficientDetTrial
from tests.experiments import launched
from tests.experiments.local_trial import local_trial

SMALL: dict[str, Any] = {
    "model": "tiny",
    "image_size": 64,
    "pretrained_backbone": False,
    "global_batch_size": 8,
    "input_threads": 1,
    "drop_path_rate": 0.2,
}
# Those that torch.use_deterministic_algorithms lists for CUDA as failing, or that have no
# deterministic kernel in autograd's backward pass, by the names of ATen.
VARYING = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "max_unpool2d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward", "put_", "histc", "bincount"),
    *("median", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
}


class Operations(TorchDispatchMode):
    """Collects the names of all operations, those of the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def train(trial: EfficientDetTrial, steps: int) -> None:
    context: Any = trial.context
    trial.detector.train()
    loader: Any = trial.build_training_data_loader()
    for step, batch in zip(range(steps), loader, strict=False):
        context._current_batch_idx = step
        trial.train_batch(batch, epoch_idx=0, batch_idx=step)
    loader.close()


@pytest.mark.parametrize(
    ("model", "amp"), [("tiny", False), ("tiny", True), ("efficientdet_d0", True)]
)
def test_no_operation_of_a_step_varies_on_a_gpu(model: str, amp: bool, mini_coco: Path) -> None:
    settings = {**SMALL, "model": model, "image_size": 128, "global_batch_size": 2, "amp": amp}
    with local_trial(mini_coco, 20, **settings) as trial, Operations() as operations:
        train(trial, 1)
    assert {"convolution_backward", "native_batch_norm_backward"} <= operations.found
    assert operations.found & VARYING == set()


def test_a_pyramid_that_would_fail_in_the_first_step_is_refused() -> None:
    hparams = {"model": "efficientdetv2_dt", "pretrained_backbone": False}
    with pytest.raises(HParamError, match=r"efficientdetv2_dt.*deterministic: false"):
        build_from_hparams(parse_hparams({**hparams, "deterministic": True}), 3)
    build_from_hparams(parse_hparams(hparams), 3)


def test_the_same_bits_as_without_it_on_a_processor(mini_coco: Path) -> None:
    def weights(**settings: Any) -> torch.Tensor:
        torch.manual_seed(0)
        with local_trial(mini_coco, 20, **{**SMALL, **settings}) as trial:
            train(trial, 3)
            return torch.cat([p.detach().flatten() for p in trial.detector.parameters()])

    usual = weights()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(weights(deterministic=True), usual)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"amp": False}, {"amp": True}, {"amp": True, "compile": True}])
def test_equal_bits_twice_and_resumed(
    options: dict[str, Any], mini_coco: Path, tmp_path: Path
) -> None:
    """On a GPU: a run, the same again, and the same killed and resumed."""
    config = launched.write_config(tmp_path, mini_coco, deterministic=True, **options)
    for name in ("one", "two"):
        launched.run(config, tmp_path / name)
    process = launched.start(config, tmp_path / "resumed")
    launched.kill_after(process, tmp_path / "resumed", batches=14)
    assert "resuming at batch 12" in launched.run(config, tmp_path / "resumed")
    one, two, resumed = (
        launched.final_state(tmp_path / name) for name in ("one", "two", "resumed")
    )
    assert LocalCheckpoints(tmp_path / "one").newest() is not None
    assert launched.differences(one, two) == []
    assert launched.differences(one, resumed) == []
    assert launched.metrics(tmp_path / "one") == launched.metrics(tmp_path / "two")
