"""The report's CSV files: every report of every trial, in full precision."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.report.records import ClusterRecord, ExperimentRecord
from cluster.report.search import SearchTrial
from cluster.report.speed import ScalingPoint, training_speed


def write_tables(
    cluster: ClusterRecord,
    experiments: Sequence[ExperimentRecord],
    workloads: Mapping[str, Sequence[ScalingPoint]],
    searches: Mapping[int, Sequence[SearchTrial]],
    folder: Path,
) -> None:
    """Write the CSV files of a report.

    Args:
        cluster: The cluster that the experiments ran on.
        experiments: The experiments.
        workloads: Their speeds, from `scaling`.
        searches: The trials of each search by experiment, best first.
        folder: Folder for the files.
    """
    _write_csv(folder / "experiments.csv", [_experiment_row(cluster, each) for each in experiments])
    _write_csv(
        folder / "speed.csv",
        [
            {
                "experiment": point.experiment,
                "workload": name,
                "slots": point.slots,
                "images_per_second": point.speed.median,
                "first_quartile": point.speed.low,
                "third_quartile": point.speed.high,
                "periods": point.speed.periods,
                "reported_by_trial": point.speed.reported,
                "ideal": point.ideal,
                "efficiency": point.efficiency,
            }
            for name, points in workloads.items()
            for point in points
        ],
    )
    for kind in ("training", "validation"):
        rows = [
            {
                "experiment": each.id,
                "trial": trial.id,
                "slots": each.slots,
                **_report_columns(report),
            }
            for each in experiments
            for trial in each.trials
            for report in getattr(trial.record, kind)
        ]
        _write_csv(folder / f"{kind}.csv", rows)
    for number, trials in searches.items():
        rows = [
            {
                "rank": rank,
                "trial": each.trial.id,
                "best": each.best,
                "best_batches": each.best_batches,
                "batches": each.trial.batches,
                "outcome": each.outcome,
                "restarts": each.trial.restarts,
                **each.chosen,
            }
            for rank, each in enumerate(trials, start=1)
        ]
        _write_csv(folder / f"search-{number}.csv", rows)


def _experiment_row(cluster: ClusterRecord, experiment: ExperimentRecord) -> dict[str, Any]:
    trial = experiment.main_trial
    speed = training_speed(trial)
    best = trial.best("AP", smaller_is_better=False)
    return {
        "experiment": experiment.id,
        "name": experiment.name,
        "state": experiment.state,
        "trial": trial.id,
        "trials": len(experiment.trials),
        "model": trial.hparam("model"),
        "slots": experiment.slots,
        "launcher": experiment.launcher,
        "global_batch_size": trial.hparam("global_batch_size"),
        "batches": trial.batches,
        "seconds": trial.seconds,
        "seconds_evaluating": trial.seconds_evaluating,
        "seconds_without_slots": trial.seconds_without_slots,
        "restarts": trial.restarts,
        "images_per_second": speed.median if speed else None,
        "best_AP": best["AP"] if best else None,
        "determined": cluster.master_version,
        "image": experiment.image or None,
        "commit": experiment.commit,
        "data_version": experiment.data_version,
        "agents": " ".join(trial.hosts),
        "devices": ", ".join(trial.devices),
    }


def _report_columns(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report's columns: run, batches and seconds first, then its metrics."""
    first = {
        "run": report["run"],
        "batches": report["batches"],
        "seconds": round(report["time"], 3),
    }
    return {
        **first,
        **{key: value for key, value in report.items() if key not in (*first, "time")},
    }


def _write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the union of their columns, in order of first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
