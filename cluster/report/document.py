"""The report's README.md: tables, and how their numbers were obtained."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.report.records import ClusterRecord, ExperimentRecord
from cluster.report.search import SearchTrial, TrialOutcome
from cluster.report.speed import ScalingPoint
from cocodata.text import duration
from reporting.tables import format_metric, markdown_table

# The best trials of a search; search-N.csv has all of them.
_TRIALS_SHOWN = 40
_UNKNOWN = "not recorded"
# Of a data set's version, a SHA-256; experiments.csv has all of it.
_VERSION_DIGITS = 12


def render_readme(
    cluster: ClusterRecord,
    experiments: Sequence[ExperimentRecord],
    workloads: Mapping[str, Sequence[ScalingPoint]],
    searches: Mapping[int, Sequence[SearchTrial]],
    created: datetime.datetime,
) -> str:
    """Render the report's text.

    Args:
        cluster: The cluster that the experiments ran on.
        experiments: The experiments.
        workloads: Their speeds, from `scaling`.
        searches: The trials of each search by experiment, best first.
        created: Time of the report.
    """
    numbers = ", ".join(str(each.id) for each in experiments)
    title = f"# Experiment {numbers}\n" if len(experiments) == 1 else f"# Experiments {numbers}\n"
    parts = [
        title,
        f"Read from the master of cluster {cluster.name} (Determined {cluster.master_version}) on "
        f"{created:%Y-%m-%d %H:%M} UTC.\n",
        _experiments_table(experiments),
        "## Samples per second\n",
        *_speed(workloads),
        "## Training loss and AP against wall clock\n",
        *_wall_clock(experiments),
    ]
    for number, trials in searches.items():
        experiment = next(each for each in experiments if each.id == number)
        parts += [f"## Search of experiment {number}\n", *_search(experiment, trials)]
    parts += ["## Versions and machines\n", *_provenance(cluster, experiments)]
    return "\n".join(parts)


def _experiments_table(experiments: Sequence[ExperimentRecord]) -> str:
    rows = []
    for each in experiments:
        trial = each.main_trial
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
                format_metric(best["AP"]) if best else "–",
                f"{trial.id}, best of {len(each.trials)}" if each.is_search else str(trial.id),
            ]
        )
    header = ["experiment", "name", "state", "model", "slots", "launched by", "global batch"]
    return markdown_table([*header, "batches", "wall clock", "best AP", "trial"], rows)


def _speed(workloads: Mapping[str, Sequence[ScalingPoint]]) -> list[str]:
    if not workloads:
        return ["No trial has reported enough to measure a speed.\n"]
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
        "Training images per second over all ranks: median and quartiles over reporting periods, "
        "without the first period after each start of a trial, evaluations and checkpoints. The "
        "ideal scales linearly from the fastest experiment with the fewest slots.\n",
    ]
    timed = [str(point.experiment) for _, point in points if not point.speed.reported]
    if timed:
        parts.append(
            f"Experiment {', '.join(timed)} did not report a speed. It is computed from the times "
            "of successive reports without an evaluation between them; checkpoints are "
            "included.\n"
        )
    if all(len({point.slots for point in of_name}) == 1 for of_name in workloads.values()):
        parts.append(
            "There is no ideal line, which needs the same workload on different numbers of slots.\n"
        )
    return parts


def _wall_clock(experiments: Sequence[ExperimentRecord]) -> list[str]:
    rows = []
    for each in experiments:
        trial = each.main_trial
        losses = [report["loss"] for report in trial.record.training if "loss" in report]
        precisions = trial.record.series("validation", "AP", against="time")[1]
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
                format_metric(precisions[-1]) if precisions else "–",
            ]
        )
    header = ["experiment", "slots", "wall clock", "of it evaluating", "of it without slots"]
    parts = ["![Training loss against wall clock](loss.png)\n"]
    if any(row[-1] != "–" for row in rows):
        parts.append("![Average precision against wall clock](ap.png)\n")
    return [
        *parts,
        markdown_table([*header, "resumed", "of it after failing", "last loss", "last AP"], rows),
        "Wall-clock time is measured by the master, from when a trial first gets its slots until "
        "the master receives a report. It includes container start, data checks, evaluations, "
        "checkpoints, pauses and restarts, but not waiting for slots before the first start. After "
        "a restart, a trial repeats the batches since its last checkpoint; only the repeated "
        "reports count, at their own times. Each loss is the mean over its reporting period; with "
        "more than 500 reports, the plot shows means of adjacent reports.\n",
    ]


def _search(experiment: ExperimentRecord, trials: Sequence[SearchTrial]) -> list[str]:
    counts = [
        f"{count} {outcome}"
        for outcome in TrialOutcome
        if (count := sum(each.outcome is outcome for each in trials))
    ]
    names = list(trials[0].chosen)
    rows = [
        [
            str(each.trial.id),
            "–" if each.best is None else format_metric(each.best),
            "–" if each.best_batches is None else str(each.best_batches),
            str(each.trial.batches),
            each.outcome,
            *(format_hparam(each.chosen[name]) for name in names),
        ]
        for each in trials[:_TRIALS_SHOWN]
    ]
    name, number = experiment.searcher.get("name", ""), len(trials)
    best = "smallest" if experiment.smaller_is_better else "largest"
    header = ["trial", f"best {experiment.metric}", "after batches", "batches", "outcome", *names]
    parts = [
        f"{name}: {number} trials, {', '.join(counts)}; the {best} {experiment.metric} is best. A "
        "cross marks the end of a trial that the searcher stopped.\n",
        f"![{experiment.metric} of each trial by batches](search-{experiment.id}.png)\n",
        markdown_table(header, rows),
    ]
    if number > _TRIALS_SHOWN:
        parts.append(
            f"Only the best {_TRIALS_SHOWN} of {number} trials are listed here; "
            f"search-{experiment.id}.csv has all of them.\n"
        )
    return parts


def _provenance(cluster: ClusterRecord, experiments: Sequence[ExperimentRecord]) -> list[str]:
    rows = []
    for each in experiments:
        trial = each.main_trial
        metadata = trial.metadata or {}
        versions = {**(metadata.get("versions") or {}), **(trial.framework or {})}
        hosts = ", ".join(trial.hosts) or _UNKNOWN
        rows.append(
            [
                str(each.id),
                each.commit or _UNKNOWN,
                each.image or _UNKNOWN,
                ", ".join(f"{name} {version}" for name, version in versions.items()) or _UNKNOWN,
                (each.data_version or _UNKNOWN)[:_VERSION_DIGITS],
                hosts + (f" ({', '.join(trial.devices)})" if trial.devices else ""),
                str(metadata.get("machine") or _UNKNOWN),
                str(metadata.get("precision") or _UNKNOWN),
                str(metadata.get("decoder") or _UNKNOWN),
            ]
        )
    header = ["experiment", "commit", "image", "versions", "data version", "agents", "machine"]
    header += ["precision", "decoder"]
    agents = [
        [each.name, str(each.slots), ", ".join(each.devices) or "–", each.version]
        for each in cluster.agents
    ]
    return [
        markdown_table(header, rows),
        "The commit is from the label `commit:` that `make train-...` adds to an experiment; "
        "`-dirty` means that there were uncommitted changes. The image and the data version are "
        "from the experiment's configuration; package versions and the machine were recorded by "
        "the trial or in its checkpoints.\n",
        "The cluster's agents at the time of this report:\n",
        markdown_table(["agent", "slots", "devices", "version"], agents),
    ]


def format_hparam(value: Any) -> str:
    """Format a hyperparameter for a table."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
