"""Measures the stages from a command that trains on a cluster to its first batches and its return.

    python -m bench.first_batch --cluster local --tree . --tree ../another-checkout

The cluster must run on this machine, whose clock gives all times, and be idle. Each command
trains the tiny detector on the mini data set for an epoch. With several checkouts, whose .secrets
must know the cluster, their commands take turns.
"""

import itertools
import os
import re
import statistics
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from determined.common import api
from determined.common.api import bindings
from rich.console import Console
from rich.table import Table

from bench.machine import describe_machine
from cluster.connection import load_connection

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ("OVERLAY=experiments/overlays/mini.yaml", "HPARAMS=epochs=1")
# The line of a trial's log with which a stage ends.
MARKS = {
    "slot and container": "have started",
    "Determined's launcher": "Launching:",
    "imports and check of the data": "hyperparameters:",
    "ten batches": "batch 10/",
}
SHOWN = "batch 10 is shown"


def measure(tree: Path, cluster: str, session: api.Session) -> dict[str, float]:
    """Run the command of a checkout; return the seconds of each stage."""
    started = time.time()
    command = ["make", "--silent", "train-const", f"CLUSTER={cluster}", *ARGUMENTS]
    # Lines are as long as they are, so that each mark is in one.
    environment = {**os.environ, "COLUMNS": "1000", "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert running.stdout is not None
    shown, output = started, ""
    for line in running.stdout:
        output += line.decode()
        if MARKS["ten batches"] in output and shown == started:
            shown = time.time()
    if running.wait():
        raise SystemExit(f"error: {' '.join(command)} failed in {tree}:\n{output}")
    returned = time.time()

    number = re.search(r"experiment (\d+)", output)
    assert number is not None, output
    experiment = bindings.get_GetExperiment(session, experimentId=int(number[1])).experiment
    trial = bindings.get_GetExperimentTrials(session, experimentId=experiment.id).trials[0]
    logs = [(_seconds(each.timestamp), each.message) for each in _logs(session, trial.id)]
    ends = {"command": _seconds(experiment.startTime)}
    ends |= {stage: next(at for at, text in logs if mark in text) for stage, mark in MARKS.items()}
    ends["the line's way to the command"] = shown
    times = [started, *ends.values()]
    stages = dict(zip(ends, (b - a for a, b in itertools.pairwise(times)), strict=True))
    assert experiment.endTime is not None
    return {
        **stages,
        SHOWN: shown - started,
        "end of the experiment to return": returned - _seconds(experiment.endTime),
    }


def _logs(session: api.Session, trial: int) -> list[bindings.v1TrialLogsResponse]:
    return sorted(bindings.get_TrialLogs(session, trialId=trial), key=lambda each: each.timestamp)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def main(
    *,
    cluster: Annotated[str, typer.Option(help="Name of the cluster.")] = "local",
    trees: Annotated[
        list[Path] | None, typer.Option("--tree", help="A checkout; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each checkout.")] = 5,
) -> None:
    """Measure the stages from a command to its first batches."""
    session = load_connection(cluster).session()
    measured: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees or [ROOT]}
    for number in range(rounds + 1):
        for tree, results in measured.items():
            result = measure(tree, cluster, session)
            if number:  # the first one warms the disk's cache
                results.append(result)
    console = Console()
    table = Table("seconds, median (range)", *(str(tree) for tree in measured))
    for stage in next(iter(measured.values()))[0]:
        columns = []
        for results in measured.values():
            values = [result[stage] for result in results]
            columns.append(
                f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            )
        table.add_row(stage, *columns)
    console.print(table)
    console.print(describe_machine())


if __name__ == "__main__":
    typer.run(main)
