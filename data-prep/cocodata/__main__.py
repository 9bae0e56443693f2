"""The command line: `python -m cocodata --help`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cocodata.check import check_dataset
from cocodata.errors import DatasetError
from cocodata.manifest import build_manifest, dataset_files, write_manifest
from cocodata.mini import generate_mini_coco
from cocodata.problems import CheckReport, count
from cocodata.split import splits
from cocodata.verify import verify_dataset

app = typer.Typer(
    help="COCO on disk: generate the mini data set, write manifests, check and verify.",
    no_args_is_help=True,
    add_completion=False,
)
_errors = Console(stderr=True, soft_wrap=True, highlight=False)

Data = Annotated[
    Path,
    typer.Argument(help="Folder with annotations/, train2017/ and val2017/.", show_default=False),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core if not given.")]


@app.command()
def mini(
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    train: Annotated[int, typer.Option(min=1, help="Images in train2017.")] = 480,
    val: Annotated[int, typer.Option(min=1, help="Images in val2017.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
) -> None:
    """Generate the mini COCO; nothing happens where the same one is already."""
    with _progress("Drawing images", train + val) as advance:
        made = generate_mini_coco(out, num_train=train, num_val=val, seed=seed, advance=advance)
    print(f"{out}: {'generated' if made else 'already there'}, {train} + {val} images")


@app.command()
def manifest(
    data: Data,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set; its folder's if not given.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Hash every file and write manifest.json; `verify` has to be run again after it."""
    with _progress("Hashing files", len(dataset_files(data))) as advance:
        built = build_manifest(data, name or data.resolve().name, workers=workers, advance=advance)
    write_manifest(data, built)
    print(f"{data}: {count(len(built.files), 'file')}, version {built.version}")


@app.command()
def verify(data: Data, workers: Workers = None) -> None:
    """Decode every image, compare every hash, and mark the manifest as verified if all is well."""
    with _progress("Verifying files", len(dataset_files(data))) as advance:
        report, built = verify_dataset(data, workers=workers, advance=advance)
    _conclude(report)
    print(f"{data}: verified, {count(len(built.files), 'file')}, version {built.version}")


@app.command()
def check(
    data: Data,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; by the number of cores if not given.")
    ] = None,
) -> None:
    """Look at a data set as is done before training: fast, without decoding images."""
    names = splits(data)
    with _progress("Looking at images", None) as advance:
        report = check_dataset(data, names, threads=threads, advance=advance)
    _conclude(report)
    how = "agrees with its verified manifest" if report.held_against_manifest else "no problems"
    print(f"{data}: {how}")


def _conclude(report: CheckReport) -> None:
    """Print the notes; end with an error if there are problems."""
    for note in report.notes:
        print(note)
    if report.problems:
        raise DatasetError(report.message())


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left on a terminal, and nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def main() -> None:
    """Run the command line; what a person can put right ends without a traceback."""
    try:
        app()
    except DatasetError as error:
        _errors.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except OSError as error:
        _errors.print(f"error: {error.filename}: {error.strerror}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
