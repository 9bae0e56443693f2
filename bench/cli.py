"""The command line, and the files that a run writes."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.comparing import Comparison, run_comparison
from bench.comparisons import COMPARISONS
from bench.counting import table as counted_steps
from bench.data import data_folder
from bench.machine import (
    allocator_settings,
    describe_commit,
    describe_machine,
    is_busy,
    keep_freed_memory,
    machine_name,
    package_versions,
)
from bench.measuring import Settings
from bench.plot import save_plots
from bench.progress import progress_bar
from bench.report import BenchmarkRun, markdown, print_report
from bench.results import ComparisonResult
from bench.scaling import NAME as SCALING
from bench.scaling import scaling
from cocodata.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1

_OTHERS = (SCALING, counted_steps.NAME)
_NAMES = ", ".join([*(comparison.name for comparison in COMPARISONS), *_OTHERS])


def select_comparisons(only: Sequence[str], baseline: str | None = None) -> list[Comparison]:
    """Return the comparisons of these names, in the usual order; all of them if none is given.

    The counted steps have a name too, but are no comparison.

    Args:
        only: Names of comparisons.
        baseline: A commit whose speed on several ranks is measured too.

    Raises:
        ValueError: There is no comparison of that name.
    """
    comparisons = [*COMPARISONS, scaling(baseline)]
    names = {comparison.name for comparison in comparisons}
    unknown = sorted(set(only) - names - {counted_steps.NAME})
    if unknown:
        raise ValueError(f"unknown comparison {', '.join(unknown)}; choose from {_NAMES}")
    return [each for each in comparisons if not only or each.name in only]


def measure_all(
    comparisons: Sequence[Comparison],
    settings: Settings,
    *,
    repeats: int,
    seconds: float | None,
    console: Console,
) -> tuple[list[ComparisonResult], list[dict[str, str]]]:
    """Run the comparisons; return the results, and the skipped ones with the reasons."""
    results, skipped, runnable = [], [], []
    for comparison in comparisons:
        reason = comparison.why_unavailable()
        if reason is None:
            runnable.append(comparison)
        else:
            title = comparison.title
            skipped.append({"name": comparison.name, "title": title, "reason": reason})
            console.print(f"skipped {comparison.name}: {reason}", highlight=False)
    expected = sum(each.expected_seconds(seconds=seconds, repeats=repeats) for each in runnable)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=expected)

        def advance(activity: str, seconds_done: float) -> None:
            progress.update(task, advance=seconds_done, description=activity)

        for comparison in runnable:
            if not console.is_terminal:
                console.print(f"measuring {comparison.name}", highlight=False)
            results.append(
                run_comparison(
                    comparison, settings, repeats=repeats, seconds=seconds, advance=advance
                )
            )
    return results, skipped


def write_results(run: BenchmarkRun, folder: Path) -> list[Path]:
    """Write the run as JSON, Markdown and plots, in files named by date and machine."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{run['made'][:10]}-{machine_name(run['machine'])}"
    texts = {".json": json.dumps(run, indent=1) + "\n", ".md": markdown(run)}
    files = []
    for suffix, text in texts.items():
        file = stem.with_name(stem.name + suffix)
        write_atomically(file, text)
        files.append(file)
    return files + save_plots(run, stem)


def _printer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"counting {text}", highlight=False)


def settings_as_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings without paths, which mean nothing on other machines."""
    values = dataclasses.asdict(settings)
    del values["scratch"]
    values["data_name"] = values.pop("data").name
    return values


def main(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data set in COCO's layout; default: $DATA, $COCO_TINY, or a generated one."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = ROOT / "bench" / "results",
    only: Annotated[
        list[str] | None, typer.Option(help=f"Comparison to run; may be repeated. {_NAMES}.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size on a CPU.")] = 4,
    gpu_batch_size: Annotated[int, typer.Option(min=1, help="Batch size on a GPU.")] = 128,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: one per core.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements per contender.")] = 3,
    baseline: Annotated[
        str | None, typer.Option(help="Commit whose speed on several ranks is measured as well.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small and short, to check that everything works.")
    ] = False,
) -> None:
    """Measure this project and its peers in turn, each in its own process."""
    console = Console(stderr=True, soft_wrap=True)
    keep_freed_memory()
    machine = describe_machine()
    cores: int = machine["cores"]
    try:
        comparisons = select_comparisons(only or [], baseline)
        if not comparisons:
            counted_steps.print_counts(counted_steps.count_all(_printer(console)), Console())
            return
        folder = data_folder(data)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from error
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        settings = Settings(
            data=folder,
            scratch=Path(scratch),
            batch_size=batch_size,
            gpu_batch_size=gpu_batch_size,
            image_size=128 if quick else 512,
            threads=threads or cores,
            coco_images=50 if quick else 5000,
        )
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        results, skipped = measure_all(
            comparisons,
            settings,
            repeats=1 if quick else repeats,
            seconds=0.2 if quick else None,
            console=console,
        )
    counts = []
    if not (only or quick) or counted_steps.NAME in (only or []):
        counts = counted_steps.count_all(_printer(console))
    run: BenchmarkRun = {
        "format": FORMAT,
        "made": now,
        "quick": quick,
        "commit": describe_commit(),
        "machine": machine,
        "machine_busy": is_busy(machine),
        "allocator": allocator_settings(),
        "versions": package_versions(),
        "settings": settings_as_dict(settings),
        "comparisons": [result.as_dict() for result in results],
        "skipped": skipped,
        "counted_steps": counts,
    }
    print_report(run, Console())
    for file in write_results(run, out):
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    failures = [
        f"{result.name}: {contender.name}: {contender.error}"
        for result in results
        for contender in result.contenders
        if contender.error is not None
    ]
    for line in failures:
        console.print(f"FAILED {line}", style="red", markup=False, highlight=False)
    if failures:
        raise typer.Exit(1)
