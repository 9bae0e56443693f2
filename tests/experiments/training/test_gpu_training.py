"""Training on a GPU, in a run as a user starts it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experiments import launched

SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0, "reprob": 0.0}


def first_loss(out: Path) -> float:
    """The loss of a run's first recorded batches."""
    losses = [entry["loss"] for entry in launched.metrics(out) if "loss" in entry]
    return float(losses[0])


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_training_begins_as_on_the_processor(
    precision: str, mini_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same weights and batches: what differs is the rounding of pixels and products."""
    options: dict[str, Any] = {"amp": False}
    if precision != "float32":
        options = {"amp": True, "amp_dtype": precision}
    config = launched.write_config(tmp_path, mini_coco, **SHORT, **options)
    output = launched.run(config, tmp_path / "gpu")
    assert (
        f"device: {torch.cuda.get_device_name()}; precision: {precision}; images decoded by: CUDA\n"
    ) in output
    record = json.loads((tmp_path / "gpu" / "run.json").read_text())
    assert (record["decoder"], record["precision"]) == ("CUDA", precision)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    config = launched.write_config(tmp_path / "float32", mini_coco, **SHORT, amp=False)
    launched.run(config, tmp_path / "cpu")
    assert first_loss(tmp_path / "gpu") == pytest.approx(first_loss(tmp_path / "cpu"), rel=0.05)
