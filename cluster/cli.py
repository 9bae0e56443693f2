"""The command line behind the make targets for clusters.

What only one command needs is imported there, so that the others start sooner.
"""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.connection import ROOT, MasterConnection, load_connection
from cluster.errors import ClusterError
from cluster.follow import follow
from cluster.gpus import GpuChoice
from cluster.overlays import config_arguments, overlay_arguments
from cluster.submit import submit
from reporting.progress import print_error

app = typer.Typer(
    help="Start a cluster on this machine, and train on it or on another cluster.",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
console = Console()

ClusterOption = Annotated[str, typer.Option("--cluster", help="Name of the cluster.")]
# The data set's path in trials, as the files in experiments/ have it.
DATA_IN_TRIALS = "/data/coco"


@app.command("up")
def up_command(
    *,
    data: Annotated[Path, typer.Option(help="Data set folder that trials read.")],
    agents: Annotated[int, typer.Option(min=1, help="Agents on this machine.")] = 1,
    slots: Annotated[int, typer.Option(min=1, help="Slots per agent of processors.")] = 4,
    port: Annotated[int, typer.Option(help="Port of the master on 127.0.0.1.")] = 8080,
    gpus: Annotated[
        GpuChoice,
        typer.Option(
            help="auto: each GPU is a slot, if there are any; none: train on processors; "
            "required: no GPU is an error."
        ),
    ] = "auto",
) -> None:
    """Start the cluster on this machine."""
    from cluster.local import LocalCluster

    LocalCluster().up(console, data=data, agents=agents, slots=slots, port=port, gpus=gpus)


@app.command("down")
def down_command() -> None:
    """Stop the cluster on this machine and keep its data."""
    from cluster.local import LocalCluster

    LocalCluster().down(console)


@app.command("destroy")
def destroy_command(
    *,
    sure: Annotated[bool, typer.Option("--sure", help="Confirm that the data is deleted.")] = False,
) -> None:
    """Remove the cluster on this machine with all its data."""
    if not sure:
        raise ClusterError(
            "this deletes the local cluster's database and checkpoints permanently. To confirm: "
            "make local-destroy SURE=yes"
        )
    from cluster.local import LocalCluster

    LocalCluster().destroy(console)


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(help="Experiment configuration.")],
    *,
    cluster: ClusterOption = "main",
    overlays: Annotated[
        list[Path] | None, typer.Option("--overlay", help="File of changes to it; may be repeated.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of a data set other than the cluster's default.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--config", help="One change, as key.inner=value.")
    ] = None,
    detach: Annotated[bool, typer.Option(help="Submit and return at once.")] = False,
) -> None:
    """Submit an experiment and follow it until it ends; fail unless it is COMPLETED."""
    connection = load_connection(cluster)
    arguments = config_arguments(_data_settings(connection, dataset))
    arguments += overlay_arguments(overlays or [])
    for change in changes or []:
        arguments += ["--config", change]
    experiment = submit(connection, config, arguments)
    if detach:
        console.print(f"experiment {experiment} submitted to {connection.master}")
        return
    _follow(connection, experiment)


@app.command("overlay")
def overlay_command(
    files: list[Path],
    *,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Add the location of this cluster's data set.")
    ] = None,
) -> None:
    """Print overlays as arguments of `det experiment create`."""
    arguments = config_arguments(_data_settings(load_connection(cluster), None)) if cluster else []
    print(shlex.join([*arguments, *overlay_arguments(files)]))


@app.command("fetch")
def fetch_command(
    checkpoint: Annotated[
        str, typer.Argument(help="UUID, or an experiment's number for its best checkpoint.")
    ],
    *,
    cluster: ClusterOption = "main",
) -> None:
    """Download a checkpoint and print its folder."""
    from cluster.checkpoints import fetch

    print(fetch(load_connection(cluster), checkpoint, ROOT / "runs" / "checkpoints"))


@app.command("follow")
def follow_command(experiment: int, *, cluster: ClusterOption = "main") -> None:
    """Follow an experiment until it ends; fail unless it is COMPLETED."""
    _follow(load_connection(cluster), experiment)


@app.command("report")
def report_command(
    experiments: Annotated[str, typer.Argument(help="Experiment numbers, such as '1 2 3'.")],
    *,
    cluster: ClusterOption = "main",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = ROOT / "runs" / "report",
) -> None:
    """Write a report of experiments: tables, plots and CSV files."""
    from cluster.report import experiment_numbers, write_report

    numbers = experiment_numbers(experiments)
    readme = write_report(load_connection(cluster), numbers, out)
    console.print(f"The report is in {readme}", highlight=False, soft_wrap=True)


def _data_settings(connection: MasterConnection, dataset: str | None) -> dict[str, Any]:
    """Return the settings of a data set's path on the hosts and its expected version."""
    folder = connection.data
    if dataset is not None:
        if Path(dataset).name != dataset:
            raise ClusterError(
                f"DATASET={dataset} is a path; give the name that it was packed under"
            )
        folder = str(Path(folder).parent / dataset)
    settings: dict[str, Any] = {}
    if folder != DATA_IN_TRIALS:
        mount = {"host_path": folder, "container_path": DATA_IN_TRIALS, "read_only": True}
        settings["bind_mounts"] = [mount]
    version = connection.versions.get(folder)
    if version is not None:
        settings["data"] = {"version": version}
    return settings


def _follow(connection: MasterConnection, experiment: int) -> None:
    try:
        follow(connection, experiment, console)
    except KeyboardInterrupt:
        console.print(
            f"experiment {experiment} keeps running. Follow it again: "
            f"make follow EXPERIMENT={experiment} CLUSTER={connection.name}"
        )
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line; print a ClusterError as one message, without a traceback."""
    try:
        app()
    except ClusterError as error:
        print_error(str(error))
        raise SystemExit(1) from error
