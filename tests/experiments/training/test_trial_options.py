"""Options of the trial, each in a run as a user starts it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cocodata import load_split
from experiments.checkpoints.detectors import load_detector
from experiments.checkpoints.local import LocalCheckpoints
from tests.experiments import launched
from tests.gpu_machines import program

SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0}


@pytest.mark.slow
def test_targets_assigned_in_the_loader_give_the_same_run(mini_coco: Path, tmp_path: Path) -> None:
    for name, beside_model in (("model", True), ("loader", False)):
        config = launched.write_config(
            tmp_path / name, mini_coco, **SHORT, bench_labeler=beside_model
        )
        launched.run(config, tmp_path / name / "run")
    one, other = (launched.final_state(tmp_path / name / "run") for name in ("model", "loader"))
    assert launched.differences(one, other) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"amp": True, "val_skip": 3, "model_ema": False, "clip_mode": "agc"}, id="bf16"
        ),
        pytest.param(
            {
                "amp": True,
                "amp_dtype": "float16",
                "min_loss_scale": 16.0,
                "fake_data": True,
                "lr": 1e-3,
            },
            id="float16-fake-data",
        ),
        pytest.param(
            {"opt": "adamw", "sched": "plateau", "smoothing": 0.1, "image_size": [128, 192]},
            id="plateau",
        ),
    ],
)
def test_options_train_to_the_end(options: dict[str, Any], mini_coco: Path, tmp_path: Path) -> None:
    config = launched.write_config(tmp_path, mini_coco, **{**SHORT, **options})
    out = tmp_path / "run"
    output = launched.run(config, out)
    if "val_skip" in options:
        assert "on 7 validation images" in output  # of 19
    record = json.loads((out / "run.json").read_text())
    decoder, precision = record["decoder"], record["precision"]
    assert f"precision: {precision}; images decoded by: {decoder}\n" in output
    assert precision == ("float16" if options.get("amp") else "float32") or decoder == "CUDA"
    assert decoder == ("CUDA" if torch.cuda.is_available() else "CPU")
    newest = LocalCheckpoints(out).newest()
    assert newest is not None
    detector = load_detector(LocalCheckpoints(out).folder(newest))
    size = options.get("image_size", [128, 128])
    assert list(detector.config.image_size) == size
    assert detector.config.num_classes == load_split(mini_coco, "val2017").categories.num_classes


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which may have engines")
def test_a_decoder_that_this_machine_lacks_is_refused(mini_coco: Path, tmp_path: Path) -> None:
    config = launched.write_config(tmp_path, mini_coco, **SHORT, hardware_decoder=True)
    process = launched.start(config, tmp_path / "run")
    assert process.wait(timeout=120) == 1
    log = " ".join((tmp_path / "run.log").read_text().split())
    assert "hardware_decoder is set, but images are decoded on the processor here" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_hidden_gpus_are_not_used(
    mini_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Determined asks nvidia-smi, which lists a GPU whatever the environment says."""
    # The answer to determined/gpu.py: index, UUID, utilization, used and total memory.
    program(tmp_path / "bin", "nvidia-smi", "echo '0, GPU-0a, 0, 1, 81559'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    output = launched.run(launched.write_config(tmp_path, mini_coco, **SHORT), tmp_path / "run")
    assert "images decoded by: CPU\n" in output


@pytest.mark.slow
def test_an_unsound_data_set_stops_before_training_unless_told_otherwise(
    mini_coco: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(mini_coco, data)
    (data / "manifest.json").unlink()
    pictures = sorted((data / "train2017").iterdir())
    pictures[0].write_bytes(pictures[0].read_bytes()[:500])
    pictures[1].unlink()
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [5000, 5000, 10, 10]
    file.write_text(json.dumps(content))
    config = launched.write_config(tmp_path, data, **SHORT)
    process = launched.start(config, tmp_path / "run")
    assert process.wait(timeout=120) == 1
    log = (tmp_path / "run.log").read_text().replace("\n", "")
    for part in (pictures[0].name, pictures[1].name, "truncated", "missing", "outside"):
        assert part in log
    assert "Traceback" not in log
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
