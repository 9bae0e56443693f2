"""Evaluation of a split: real images, an untrained detector, one or several ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocodata import Split, load_split, splits
from experiments.evaluation import CocoGroundTruth, coco_metrics
from experiments.evaluation.inference import evaluation_input
from experiments.evaluation.loop import (
    Evaluation,
    SplitEvaluator,
    evaluate_detector,
)
from experiments.input import EvalLoader
from experiments.runtime.communication import SingleProcess, TorchCommunicator
from model import DetectionCriterion, EfficientDet, build_detector

CPU = torch.device("cpu")


def tiny_detector(num_classes: int) -> EfficientDet:
    """Create a detector with random weights, scaled so that some scores pass the threshold."""
    torch.manual_seed(0)
    detector = build_detector("tiny", num_classes=num_classes)
    with torch.no_grad():
        detector.class_net.predict.conv_pw.weight.mul_(30)
        detector.class_net.predict.conv_pw.bias.fill_(-2.0)
    return detector.eval()


@pytest.fixture(scope="module")
def split(coco_tiny: Path) -> Split:
    complete = load_split(coco_tiny, splits(coco_tiny)[1])
    return complete.select(np.arange(len(complete)) < 7)


@pytest.fixture(scope="module")
def detector(split: Split) -> EfficientDet:
    return tiny_detector(split.categories.num_classes)


def evaluated(detector: EfficientDet, split: Split, **options: Any) -> Evaluation:
    config = evaluation_input(detector.config, device=CPU, threads=1)
    return evaluate_detector(detector, split, config, **options)


@pytest.fixture(scope="module")
def evaluation(detector: EfficientDet, split: Split) -> Evaluation:
    return evaluated(detector, split, batch_size=4)


def test_every_image_is_evaluated_once(evaluation: Evaluation, split: Split) -> None:
    assert evaluation.detections.evaluated.tolist() == split.image_ids.tolist()
    assert len(evaluation.detections) > 100
    assert evaluation.result == coco_metrics(CocoGroundTruth(split), evaluation.detections)


def test_losses_equal_those_of_one_batch_with_all_images(
    evaluation: Evaluation, detector: EfficientDet, split: Split
) -> None:
    config = evaluation_input(detector.config, device=CPU, threads=1)
    with EvalLoader(split, config, batch_size=len(split)) as loader, torch.inference_mode():
        (batch,) = loader
        criterion = DetectionCriterion(detector.config)
        losses = criterion(detector(batch["image"]), batch["boxes"], batch["labels"])
    np.testing.assert_allclose(
        list(evaluation.losses.values()), [float(each) for each in losses], rtol=1e-5
    )


def test_metrics_are_numbers_and_ap_per_class(evaluation: Evaluation) -> None:
    metrics = evaluation.metrics
    classes = metrics.pop("ap_per_class")
    assert {"AP", "ARl", "val_loss", "val_class_loss", "val_box_loss"} <= metrics.keys()
    assert all(type(value) is float for value in [*metrics.values(), *classes.values()])


def evaluate_on_rank(rank: int, ranks: int, folder: Path, detector: EfficientDet, split: Split):
    """Run by each process."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=ranks
    )
    result = evaluated(detector, split, batch_size=4, communicator=TorchCommunicator())
    torch.save(result, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_three_ranks_have_the_results_of_one(
    evaluation: Evaluation, detector: EfficientDet, split: Split, tmp_path: Path
) -> None:
    ranks = 3
    torch.multiprocessing.spawn(evaluate_on_rank, (ranks, tmp_path, detector, split), nprocs=ranks)
    for rank in range(ranks):
        result: Evaluation = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert result.detections.evaluated.tolist() == split.image_ids.tolist()
        # The order of a convolution's sums may depend on the batch size.
        for name, value in evaluation.metrics.items():
            assert result.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name


def test_an_evaluator_can_be_reset(detector: EfficientDet, split: Split) -> None:
    config = detector.config
    evaluator = SplitEvaluator(config, CPU, CocoGroundTruth(split), split.categories)
    outcomes = []
    with EvalLoader(split, evaluation_input(config, device=CPU, threads=1), batch_size=8) as loader:
        for _ in range(2):
            evaluator.reset()
            for batch in loader:
                evaluator.add(detector, batch)
            outcomes.append(evaluator.gather(SingleProcess()).metrics)
    assert outcomes[0] == outcomes[1]


def test_training_mode_is_rejected(detector: EfficientDet, split: Split) -> None:
    evaluator = SplitEvaluator(detector.config, CPU, CocoGroundTruth(split), split.categories)
    detector.train()
    try:
        with pytest.raises(RuntimeError, match="call eval"):
            evaluator.add(detector, {})
    finally:
        detector.eval()


def test_a_detector_with_other_classes_is_rejected(split: Split) -> None:
    with pytest.raises(ValueError, match=r"has 7 classes, .* has 90"):
        evaluated(tiny_detector(7), split, batch_size=4)
