"""The three experiments, submitted to a real master as `make` does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from determined.experimental.client import Trial

from cluster.checkpoints import fetch
from cocodata import load_split, splits
from experiments.checkpoints.detectors import load_detector
from experiments.evaluation.inference import evaluation_input
from experiments.evaluation.loop import evaluate_detector
from tests.experiments import launched
from tests.experiments.training.test_resume import COMPARABLE
from tests.system.cluster.real_cluster import PERIODS, RealCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

TORCH = "python3 -m determined.launch.torch_distributed -- python3 experiments/train.py"


def losses(reports: list[dict[str, float]]) -> list[float]:
    return [entry["loss"] for entry in reports][:20]


def test_const_equals_a_run_without_a_cluster(cluster: RealCluster, tmp_path: Path) -> None:
    """The metrics are bitwise equal."""
    experiment = cluster.submit("const")
    cluster.wait(experiment)
    trial = cluster.trial(experiment)

    config = launched.write_config(tmp_path, cluster.data, **PERIODS)
    launched.run(config, tmp_path / "local", threads=1)
    local = launched.metrics(tmp_path / "local")

    for kind, group in (("train", "training"), ("validation", "validation")):
        reported = {entry["batches"]: entry for entry in cluster.reports(trial, group)}
        for entry in (each for each in local if each["kind"] == kind):
            there = reported[entry["batches"]]
            shared = (there.keys() & entry.keys()) - {"batches", "epochs", "kind"}
            assert shared
            assert {k: there[k] for k in shared} == {k: entry[k] for k in shared}


def test_four_ranks_have_the_losses_of_one_process(cluster: RealCluster, tmp_path: Path) -> None:
    """With Horovod on one agent, and with torch.distributed on two agents of two slots."""
    short = {"hyperparameters": COMPARABLE}
    one = cluster.submit("const", **short)
    horovod = cluster.submit("distributed", **short)
    cluster.wait(one)
    cluster.wait(horovod)
    cluster.resize(agents=2, slots=2)
    two_agents = cluster.submit("distributed", entrypoint=TORCH, **short)
    cluster.wait(two_agents)
    expected = losses(cluster.reports(cluster.trial(one), "training"))
    assert len(expected) == 20
    for experiment in (horovod, two_agents):
        actual = losses(cluster.reports(cluster.trial(experiment), "training"))
        assert actual == pytest.approx(expected, rel=1e-4)


def test_an_adaptive_search(cluster: RealCluster) -> None:
    """Eight trials, some stopped early; the best one's checkpoint reproduces its reported AP."""
    experiment = cluster.submit(
        "adaptive",
        resources={"slots_per_trial": 1},
        entrypoint="python3 experiments/train.py",
        searcher={"max_trials": 8, "max_time": 4},
        hyperparameters={"epochs": 4, "warmup_epochs": 0, "cooldown_epochs": 0},
        without=("opt", "lr"),
        min_validation_period={"epochs": 1},
    )
    cluster.wait(experiment, seconds=900)
    trials = list(experiment.iter_trials())
    assert len(trials) >= 8
    lengths = {
        trial.id: max(e["batches"] for e in cluster.reports(trial, "training")) for trial in trials
    }
    assert max(lengths.values()) == 24
    assert min(lengths.values()) < 24

    best = max(trials, key=best_ap)
    folder = fetch(cluster.connection, str(experiment.id), cluster.local.state / "fetched")
    split = load_split(cluster.data, splits(cluster.data)[1])
    detector = load_detector(folder)
    evaluation = evaluate_detector(
        detector.eval(),
        split,
        evaluation_input(detector.config, device=torch.device("cpu"), threads=1),
        batch_size=4,
    )
    assert evaluation.result.metrics["AP"] == pytest.approx(best_ap(best), abs=1e-6)


def best_ap(trial: Trial) -> float:
    return max(entry.metrics["AP"] for entry in trial.iter_metrics("validation"))


def train(cluster: RealCluster, *changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", "train", "experiments/const.yaml"]
    command += ["--cluster", cluster.connection.name]
    command += [part for change in changes for part in ("--config", change)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_an_invalid_setting_is_not_submitted(cluster: RealCluster) -> None:
    before = len(cluster.master.list_experiments())
    run = train(cluster, "hyperparameters.lr=-1")
    assert run.returncode == 1
    assert "lr" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(cluster.master.list_experiments()) == before


def test_a_failed_experiment_is_reported(cluster: RealCluster) -> None:
    """The output has the log with the reason, and the exit status is 1."""
    run = train(cluster, "data.version=another", "max_restarts=0")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "the experiment needs another" in run.stdout.replace("\n", " ")
    assert "ended as ERROR" in run.stderr
