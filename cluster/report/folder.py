"""Writes a report's folder, atomically."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.connection import MasterConnection, translate_errors
from cluster.errors import ClusterError
from cluster.report.collecting import collect_cluster, collect_experiments
from cluster.report.document import render_readme
from cluster.report.figures import label_of, plot_ap, plot_loss, plot_search, plot_speed
from cluster.report.records import ClusterRecord, ExperimentRecord
from cluster.report.search import SearchTrial, rank_trials
from cluster.report.speed import ScalingPoint, scaling
from cluster.report.tables import write_tables
from cocodata.files import atomic_folder
from reporting.plots import save_figure

_REPORT_FILES = re.compile(
    r"README\.md|((speed|loss|ap|search-\d+)\.(png|svg))"
    r"|((experiments|speed|training|validation|search-\d+)\.csv)"
)


def write_report(connection: MasterConnection, numbers: Sequence[int], out: Path) -> Path:
    """Read experiments from a cluster's master and write their report.

    Args:
        connection: The cluster.
        numbers: The experiments' numbers.
        out: Folder for the report. An earlier report in it is replaced.

    Returns:
        The path of the report's README.md.

    Raises:
        ClusterError: The master does not answer, an experiment does not exist or has no metrics,
            or the folder holds other files.
    """
    require_replaceable(out)
    session = connection.session()
    with translate_errors(connection):
        cluster = collect_cluster(session, connection.name)
        experiments = collect_experiments(session, cluster, numbers)
    return write_folder(cluster, experiments, out)


def write_folder(
    cluster: ClusterRecord, experiments: Sequence[ExperimentRecord], out: Path
) -> Path:
    """Write the report and return the path of its README.md."""
    require_replaceable(out)
    workloads = scaling(experiments)
    searches = {each.id: rank_trials(each) for each in experiments if each.is_search}
    now = datetime.datetime.now(datetime.UTC)
    out = out.resolve()
    with atomic_folder(out) as temporary:
        _save_figures(experiments, workloads, searches, temporary)
        write_tables(cluster, experiments, workloads, searches, temporary)
        text = render_readme(cluster, experiments, workloads, searches, now)
        (temporary / "README.md").write_text(text, encoding="utf-8")
    return out / "README.md"


def require_replaceable(out: Path) -> None:
    """Check that a folder is missing, empty, or holds nothing but a report.

    Raises:
        ClusterError: It holds other files, which writing a report would delete.
    """
    if out.is_dir():
        others = sorted(
            each.name for each in out.iterdir() if not _REPORT_FILES.fullmatch(each.name)
        )
        if others:
            raise ClusterError(
                f"{out} is not a report's folder: it contains {others[0]}, which would be deleted; "
                "choose another folder with OUT="
            )
    elif out.exists():
        raise ClusterError(f"{out} is not a folder; choose another with OUT=")


def _save_figures(
    experiments: Sequence[ExperimentRecord],
    workloads: Mapping[str, Sequence[ScalingPoint]],
    searches: Mapping[int, Sequence[SearchTrial]],
    folder: Path,
) -> None:
    ordered = sorted(experiments, key=lambda each: (each.slots, each.id))
    if workloads:
        save_figure(plot_speed(workloads), folder / "speed")
    longest = max(each.main_trial.seconds for each in experiments)
    losses = {
        label_of(each): each.main_trial.record.series("training", "loss", against="time")
        for each in ordered
    }
    save_figure(plot_loss(losses, longest=longest), folder / "loss")
    precisions = {
        label_of(each): each.main_trial.record.series("validation", "AP", against="time")
        for each in ordered
    }
    evaluated = {name: series for name, series in precisions.items() if series[0]}
    if evaluated:
        save_figure(plot_ap(evaluated, longest=longest), folder / "ap")
    for experiment in experiments:
        if experiment.id in searches:
            figure = plot_search(experiment.metric, searches[experiment.id])
            save_figure(figure, folder / f"search-{experiment.id}")
