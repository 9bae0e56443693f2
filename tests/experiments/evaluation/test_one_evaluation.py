"""Training, evaluate.py and predict.py compute bitwise the same metrics of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cocodata import load_split
from experiments import evaluate, predict
from experiments.evaluation import CocoGroundTruth, coco_metrics
from experiments.evaluation.inference import open_detector
from experiments.evaluation.loop import Evaluation
from experiments.training.trial import EfficientDetTrial
from tests.experiments.evaluation.test_commands import run
from tests.experiments.evaluation.test_loop import tiny_detector
from tests.experiments.local_trial import local_trial

BATCH = 4  # the same everywhere, as the order of a convolution's sums may depend on it


def evaluated_in_training(trial: EfficientDetTrial) -> Evaluation:
    for batch in trial.build_validation_data_loader():
        trial.evaluate_batch(batch)
    return trial.evaluator.gather(trial.communicator)


def save_checkpoint(trial: EfficientDetTrial, folder: Path) -> Path:
    """Save a checkpoint like Determined's trainer, with the trial's additions."""
    position: Any = trial.build_callbacks()["position"]
    folder.mkdir()
    content = {
        "models_state_dict": [trial.detector.state_dict()],
        "callbacks": {"position": position.state_dict()},
    }
    torch.save(content, folder / "state_dict.pth")
    position.on_checkpoint_write_end(str(folder))
    return folder


@pytest.mark.parametrize(
    ("amp_dtype", "channels_last"), [("bfloat16", True), ("float16", False), ("float16", True)]
)
def test_training_evaluate_and_predict_have_the_same_metrics(
    amp_dtype: str, *, channels_last: bool, mini_coco: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "sharp.pth"
    num_classes = load_split(mini_coco, "val2017").categories.num_classes
    torch.save(tiny_detector(num_classes).state_dict(), weights)
    with local_trial(
        mini_coco,
        batches_per_epoch=6,
        model="tiny",
        weights=str(weights),
        pretrained_backbone=False,
        amp=True,
        amp_dtype=amp_dtype,
        channels_last=channels_last,
        interpolation="bicubic",
        eval_batch_size=BATCH,
        input_threads=1,
    ) as trial:
        split = trial.run.val
        in_training = evaluated_in_training(trial)
        checkpoint = save_checkpoint(trial, tmp_path / "checkpoint")

    out = tmp_path / "evaluated"
    result = run(
        evaluate,
        *("--checkpoint", checkpoint, "--data", mini_coco, "--out", out),
        *("--device", "cpu", "--batch-size", BATCH),
    )
    assert result.exit_code == 0, result.output
    evaluated = json.loads((out / "metrics.json").read_text())

    detector = open_detector(checkpoint, device="cpu")
    assert detector.config.interpolation == "bicubic"
    predicted = predict.detect_split(detector, split, batch_size=BATCH, threads=1)

    assert len(predicted) > 100
    assert in_training.result.metrics["AR100"] > 0
    assert evaluated["metrics"] == in_training.result.metrics
    assert evaluated["losses"] == in_training.losses
    assert coco_metrics(CocoGroundTruth(split), predicted).metrics == in_training.result.metrics
    assert predicted.scores.tolist() == in_training.detections.scores.tolist()
    assert predicted.boxes.tolist() == in_training.detections.boxes.tolist()


def test_detection_is_in_float32_even_under_autocast(mini_coco: Path) -> None:
    """In bfloat16, most scores would be tied."""
    with local_trial(
        mini_coco, 6, model="tiny", pretrained_backbone=False, amp=False, input_threads=1
    ) as trial:
        plain = evaluated_in_training(trial)
        trial.evaluator.reset()
        with torch.autocast("cpu", torch.bfloat16):
            cast = evaluated_in_training(trial)
    assert cast.detections.scores.tolist() == plain.detections.scores.tolist()
    assert cast.losses == plain.losses
