"""Experiments with few, round numbers, so that their report can be computed by hand."""

from typing import Any

from cluster.report.collecting import collect_cluster, collect_experiments
from cluster.report.records import ExperimentRecord
from tests.cluster.fake_master import Experiment, FakeMaster, Trial

SINGLE = {"name": "single", "metric": "AP", "smaller_is_better": False}


def config(slots: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "efficientdet",
        "entrypoint": "python3 experiments/train.py",
        "data": {"path": "/data/coco", "version": "44c9"},
        "environment": {"image": {"cpu": "task:1", "cuda": "task:1"}},
        "resources": {"slots_per_trial": slots},
        "searcher": SINGLE,
        "hyperparameters": {},
        **more,
    }


def trained(loss: float, speed: float) -> dict[str, Any]:
    return {"loss": loss, "class_loss": loss, "box_loss": 0.0, "images_per_second": speed}


HPARAMS = {"model": "tiny", "global_batch_size": 16, "amp": False}

# Waited 1000 s for slots; its evaluations took 5 s and 3 s.
CONST = Experiment(
    1,
    config(1),
    [
        Trial(
            11,
            HPARAMS,
            training=[
                (1, 10, 20.0, trained(8.0, 1.0)),
                (1, 20, 30.0, trained(4.0, 8.0)),
                (1, 30, 45.0, trained(2.0, 10.0)),
                (1, 40, 55.0, trained(1.0, 12.0)),
            ],
            validation=[
                (1, 20, 35.0, {"AP": 0.1, "ap_per_class": {"cat": 0.1}}),
                (1, 40, 58.0, {"AP": 0.3}),
            ],
        )
    ],
    labels=["baseline", "commit:0123456789ab-dirty"],
)

# Failed after 30 s, waited until 50 s and resumed from batch 20.
DISTRIBUTED = Experiment(
    2,
    config(4, entrypoint="python3 -m determined.launch.horovod --autohorovod python3 train.py"),
    [
        Trial(
            12,
            {"model": "tiny", "global_batch_size": 64, "amp": False},
            restarts=1,
            allocations=[(10.0, 40.0), (60.0, None)],
            archived=[(1, 25, 38.0, trained(9.0, 500.0))],
            training=[
                (1, 10, 20.0, trained(8.0, 900.0)),
                (1, 20, 30.0, trained(4.0, 30.0)),
                (2, 30, 80.0, trained(2.0, 900.0)),
                (2, 40, 90.0, trained(1.0, 32.0)),
            ],
            validation=[(2, 40, 95.0, {"AP": 0.2})],
            metadata={"versions": {"timm": "1.0.31"}},
        )
    ],
    state="ACTIVE",
)


def search(**hparams: Any) -> Experiment:
    def trial(number: int, state: str, values: list[float], lr: float, **more: Any) -> Trial:
        return Trial(
            number,
            {"model": "tiny", "amp": False, "global_batch_size": 8, "lr": lr, "opt": "adam"},
            state,
            validation=[
                (1, 10 * epoch, 10.0 * epoch, {"AP": value, "epochs": epoch})
                for epoch, value in enumerate(values, start=1)
            ],
            **more,
        )

    losses = [(1, batches, 2.0 * batches, {"loss": 1.0}) for batches in (4, 8, 10, 14)]
    return Experiment(
        3,
        config(
            2,
            searcher={
                "name": "adaptive_asha",
                "metric": "AP",
                "smaller_is_better": False,
                "max_time": 3,
                "time_metric": "epochs",
            },
            hyperparameters={
                "model": "tiny",
                "lr": {"type": "double", "minval": 0.1, "maxval": 1},
                "seed": {"type": "const", "val": 3},
                "opt": {"type": "categorical", "vals": ["adam"]},
                **hparams,
            },
        ),
        [
            trial(21, "COMPLETED", [0.1, 0.2, 0.3], 0.5),
            trial(22, "COMPLETED", [0.4], 0.25, training=losses),
            trial(23, "ERROR", [], 1.0),
            trial(24, "COMPLETED", [0.05, 0.1], 0.125),
            trial(25, "RUNNING", [0.2], 0.1),
        ],
    )


CLUSTER = collect_cluster(FakeMaster([]), "local")


def collect(*experiments: Experiment, **master: Any) -> list[ExperimentRecord]:
    numbers = [each.id for each in experiments]
    return collect_experiments(FakeMaster(experiments, **master), CLUSTER, numbers)
