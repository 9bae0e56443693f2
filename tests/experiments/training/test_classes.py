"""Classes of splits, checkpoints and settings are compared by name before the first batch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from determined import core

from cocodata import Categories, DatasetError, load_split
from experiments import evaluate
from experiments.settings.experiment import ExperimentConfig, parse_config
from experiments.settings.hparams import HParamError
from experiments.training.dataset import load_splits
from experiments.training.run import require_num_classes
from tests.experiments.evaluation.test_commands import run
from tests.experiments.evaluation.test_one_evaluation import save_checkpoint
from tests.experiments.local_trial import local_trial

ALONE = core.DummyDistributedContext()


def config_of(data: Path, **hparams: Any) -> ExperimentConfig:
    return parse_config(
        {
            "data": {"path": str(data)},
            "hyperparameters": hparams,
            "searcher": {"name": "single", "metric": "AP", "smaller_is_better": False},
        }
    )


@pytest.fixture
def renumbered(mini_coco: Path, tmp_path: Path) -> Path:
    """A data set whose validation split has other ids than the training split."""
    folder = tmp_path / "renumbered"
    shutil.copytree(mini_coco, folder)
    (folder / "manifest.json").unlink()
    file = folder / "annotations" / "instances_val2017.json"
    tree = json.loads(file.read_text())
    new = {1: 30, 2: 10, 3: 20, 5: 6, 7: 5, 8: 40}
    for entry in tree["annotations"]:
        entry["category_id"] = new[entry["category_id"]]
    for entry in tree["categories"]:
        entry["id"] = new[entry["id"]]
    file.write_text(json.dumps(tree))
    return folder


def test_both_splits_have_the_labels_of_train(
    mini_coco: Path, renumbered: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = load_splits(config_of(mini_coco), ALONE)
    assert "matched by name" not in capfd.readouterr().out
    train, val = load_splits(config_of(renumbered), ALONE)
    assert capfd.readouterr().out.count("val2017: classes (6) are matched by name") == 1
    for split, other in zip((train, val), expected, strict=True):
        np.testing.assert_array_equal(split.labels, other.labels)
    assert val.categories.ids == (5, 6, 10, 20, 30, 40)


def test_a_resumed_run_keeps_the_labels_of_its_checkpoint(
    mini_coco: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The data had its classes in another order when the checkpoint was written.
    names = load_split(mini_coco, "train2017").categories.names
    before = Categories(ids=(1, 2, 3, 4, 5, 6), names=tuple(reversed(names)))
    splits = load_splits(config_of(mini_coco), ALONE, before, resumes=True)
    assert "the checkpoint's classes are matched by name" in capfd.readouterr().out
    for split in splits:
        original = load_split(mini_coco, split.name)
        assert [before.name_of(label) for label in split.labels.tolist()] == [
            original.categories.name_of(label) for label in original.labels.tolist()
        ]
        assert split.categories.of_detector == before


def test_a_checkpoint_of_other_classes_is_not_resumed(
    mini_coco: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Categories(ids=(1, 2, 3), names=("cat", "dog", "owl"))
    with pytest.raises(DatasetError, match="has other classes than the checkpoint: only the first"):
        load_splits(config_of(mini_coco), ALONE, other, resumes=True)
    # A new run that starts from its weights may be about something else.
    train, _ = load_splits(config_of(mini_coco), ALONE, other)
    assert train.categories.of_detector == load_split(mini_coco, "train2017").categories
    assert "the checkpoint's classes are not those of the data" in capfd.readouterr().out


@pytest.mark.parametrize("number", [2, 6, 90])
def test_another_number_of_classes_than_the_datas_is_refused(mini_coco: Path, number: int) -> None:
    categories = load_split(mini_coco, "train2017").categories
    with pytest.raises(HParamError, match=f"num_classes: is {number}, but the data set has 6 "):
        require_num_classes(config_of(mini_coco, num_classes=number).hparams, categories)
    require_num_classes(config_of(mini_coco, num_classes=8).hparams, categories)


def test_a_checkpoint_has_the_same_metrics_on_data_with_other_ids(
    mini_coco: Path, renumbered: Path, tmp_path: Path
) -> None:
    with local_trial(
        mini_coco, batches_per_epoch=6, model="tiny", pretrained_backbone=False, input_threads=1
    ) as trial:
        trial.detector.class_net.predict.conv_pw.weight.data.mul_(30)
        trial.detector.class_net.predict.conv_pw.bias.data.fill_(-2.0)
        trial.ema.module.load_state_dict(trial.detector.state_dict())  # type: ignore[union-attr]
        checkpoint = save_checkpoint(trial, tmp_path / "checkpoint")
    metrics = []
    for name, data in (("as-trained", mini_coco), ("renumbered", renumbered)):
        out = tmp_path / name
        result = run(
            evaluate,
            *("--checkpoint", checkpoint, "--data", data, "--out", out, "--device", "cpu"),
        )
        assert result.exit_code == 0, result.output
        metrics.append(json.loads((out / "metrics.json").read_text()))
        rows = json.loads((out / "detections.json").read_text())
        ids = set(load_split(data, "val2017").categories.ids)
        assert {row["category_id"] for row in rows} == ids  # those of the data's own file
    assert metrics[0]["metrics"]["AP"] > 0
    # The mean over the classes is summed in another order.
    assert metrics[0]["metrics"] == pytest.approx(metrics[1]["metrics"], rel=1e-12)
    assert metrics[0]["losses"] == metrics[1]["losses"]

    file = renumbered / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"disc"', '"hoop"'))
    result = run(
        evaluate,
        *("--checkpoint", checkpoint, "--data", renumbered, "--out", tmp_path, "--device", "cpu"),
    )
    assert result.exit_code == 1
    assert "only the first has 'hoop'" in " ".join(result.output.split())
