"""The report's text: README.md, with tables and how each number came about."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.report.records import ClusterRecord, ExperimentRecord
from cluster.report.search import SearchedTrial, TrialOutcome
from cluster.report.speed import ScalingPoint
from cocodata.text import duration
from reporting.tables import markdown_table, shown

# A person reads the best trials; search-N.csv has all of them.
_TRIALS_SHOWN = 40
_UNKNOWN = "not recorded"
# Of a data set's version, a SHA-256: enough to tell, and experiments.csv has the rest.
_VERSION_DIGITS = 12


def readme(
    cluster: ClusterRecord,
    experiments: Sequence[ExperimentRecord],
    workloads: Mapping[str, Sequence[ScalingPoint]],
    searches: Mapping[int, Sequence[SearchedTrial]],
    made: datetime.datetime,
) -> str:
    """The whole text.

    Args:
        cluster: Where the experiments ran.
        experiments: What is reported.
        workloads: Speeds, as `scaling` gives them.
        searches: The trials of each search, the best first, by experiment.
        made: When the report is made.
    """
    numbers = ", ".join(str(each.id) for each in experiments)
    title = f"# Experiment {numbers}\n" if len(experiments) == 1 else f"# Experiments {numbers}\n"
    parts = [
        title,
        f"Read from the master of cluster {cluster.name} (Determined {cluster.master_version}) on "
        f"{made:%Y-%m-%d %H:%M} UTC.\n",
        _experiments_table(experiments),
        "## Samples per second\n",
        *_speed(workloads),
        "## Training loss and AP against wall clock\n",
        *_wall_clock(experiments),
    ]
    for number, trials in searches.items():
        experiment = next(each for each in experiments if each.id == number)
        parts += [f"## Search of experiment {number}\n", *_search(experiment, trials)]
    parts += ["## What it ran on\n", *_origin(cluster, experiments)]
    return "\n".join(parts)


def _experiments_table(experiments: Sequence[ExperimentRecord]) -> str:
    rows = []
    for each in experiments:
        trial = each.shown
        best = trial.best("AP", smaller_is_better=False)
        rows.append(
            [
                str(each.id),
                each.name,
                each.state,
                str(trial.hparam("model")),
                str(each.slots),
                each.launcher,
                str(trial.hparam("global_batch_size")),
                str(trial.batches),
                duration(trial.seconds),
                shown(best["AP"]) if best else "–",
                f"{trial.id}, best of {len(each.trials)}" if each.is_search else str(trial.id),
            ]
        )
    header = ["experiment", "name", "state", "model", "slots", "launched by", "global batch"]
    return markdown_table([*header, "batches", "wall clock", "best AP", "trial"], rows)


def _speed(workloads: Mapping[str, Sequence[ScalingPoint]]) -> list[str]:
    if not workloads:
        return ["No trial has reported enough to tell.\n"]
    points = [(name, point) for name, of_name in workloads.items() for point in of_name]
    rows = [
        [
            str(point.experiment),
            name,
            str(point.slots),
            f"{point.speed.median:.4g}",
            f"{point.speed.low:.4g} to {point.speed.high:.4g}",
            f"{point.ideal:.4g}",
            f"{point.efficiency:.0%}",
            str(point.speed.periods),
        ]
        for name, point in points
    ]
    header = ["experiment", "workload", "slots", "median", "quartiles", "ideal", "of ideal"]
    parts = [
        "![Samples per second by number of slots](speed.png)\n",
        markdown_table([*header, "periods"], rows),
        "Training images per second over all ranks, in the median and quartiles of the reporting "
        "periods. The first period after each start of a trial is left out, as are evaluations and "
        "checkpoints. The ideal grows linearly from the fastest experiment with the fewest "
        "slots.\n",
    ]
    timed = [str(point.experiment) for _, point in points if not point.speed.reported]
    if timed:
        parts.append(
            f"Experiment {', '.join(timed)} did not report a speed: images are divided by the time "
            "between two reports, without those that had an evaluation between them, with "
            "checkpoints.\n"
        )
    if all(len({point.slots for point in of_name}) == 1 for of_name in workloads.values()):
        parts.append(
            "There is no ideal line: it needs experiments that train the same on different "
            "numbers of slots.\n"
        )
    return parts


def _wall_clock(experiments: Sequence[ExperimentRecord]) -> list[str]:
    rows = []
    for each in experiments:
        trial = each.shown
        losses = [report["loss"] for report in trial.record.training if "loss" in report]
        precise = trial.record.series("validation", "AP", against="time")[1]
        rows.append(
            [
                str(each.id),
                str(each.slots),
                duration(trial.seconds),
                duration(trial.seconds_evaluating),
                duration(trial.seconds_without_slots),
                str(max(0, len(trial.allocations) - 1)),
                str(trial.restarts),
                f"{losses[-1]:.4g}",
                shown(precise[-1]) if precise else "–",
            ]
        )
    header = ["experiment", "slots", "wall clock", "of it evaluating", "of it without slots"]
    parts = ["![Training loss against wall clock](loss.png)\n"]
    if any(row[-1] != "–" for row in rows):
        parts.append("![Average precision against wall clock](ap.png)\n")
    return [
        *parts,
        markdown_table([*header, "resumed", "of it after failing", "last loss", "last AP"], rows),
        "Time runs by the master's clock from when a trial first held its slots to when the master "
        "took a report in. Starting the containers, looking at the data, evaluations, checkpoints, "
        "pauses and restarts are included; waiting for slots before the first start is not. After "
        "a restart a trial repeats what came after its last checkpoint: only what it reported the "
        "second time counts, at the time of that report. A loss is the mean of its reporting "
        "period; of more than 500 reports, the plot shows means of neighbours.\n",
    ]


def _search(experiment: ExperimentRecord, trials: Sequence[SearchedTrial]) -> list[str]:
    counts = [
        f"{count} {outcome}"
        for outcome in TrialOutcome
        if (count := sum(each.outcome is outcome for each in trials))
    ]
    names = list(trials[0].chosen)
    rows = [
        [
            str(each.trial.id),
            "–" if each.best is None else shown(each.best),
            "–" if each.best_batches is None else str(each.best_batches),
            str(each.trial.batches),
            each.outcome,
            *(cell(each.chosen[name]) for name in names),
        ]
        for each in trials[:_TRIALS_SHOWN]
    ]
    name, number = experiment.searcher.get("name", ""), len(trials)
    best = "smallest" if experiment.smaller_is_better else "largest"
    header = ["trial", f"best {experiment.metric}", "after batches", "batches", "outcome", *names]
    parts = [
        f"{name}: {number} trials, {', '.join(counts)}; the {best} {experiment.metric} wins. A "
        "cross ends the line of a trial that the searcher stopped.\n",
        f"![{experiment.metric} of each trial over its batches](search-{experiment.id}.png)\n",
        markdown_table(header, rows),
    ]
    if number > _TRIALS_SHOWN:
        parts.append(f"The best {_TRIALS_SHOWN} of {number}; search-{experiment.id}.csv has all.\n")
    return parts


def _origin(cluster: ClusterRecord, experiments: Sequence[ExperimentRecord]) -> list[str]:
    rows = []
    for each in experiments:
        trial = each.shown
        noted = trial.metadata or {}
        versions = {**(noted.get("versions") or {}), **(trial.framework or {})}
        hosts = ", ".join(trial.hosts) or _UNKNOWN
        rows.append(
            [
                str(each.id),
                each.commit or _UNKNOWN,
                each.image or _UNKNOWN,
                ", ".join(f"{name} {version}" for name, version in versions.items()) or _UNKNOWN,
                (each.data_version or _UNKNOWN)[:_VERSION_DIGITS],
                hosts + (f" ({', '.join(trial.devices)})" if trial.devices else ""),
                str(noted.get("machine") or _UNKNOWN),
            ]
        )
    header = ["experiment", "commit", "image", "versions", "data version", "agents", "machine"]
    agents = [
        [each.name, str(each.slots), ", ".join(each.devices) or "–", each.version]
        for each in cluster.agents
    ]
    return [
        markdown_table(header, rows),
        "The commit is the label `commit:` that `make train-...` puts on an experiment; `-dirty` "
        "says that files were changed since. Image and data version are from the experiment's "
        "configuration; package versions and the machine are what the trial wrote down, or its "
        "checkpoints say.\n",
        "The cluster's agents when this was written:\n",
        markdown_table(["agent", "slots", "devices", "version"], agents),
    ]


def cell(value: Any) -> str:
    """A hyperparameter as a person reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
