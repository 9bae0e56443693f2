"""The command line: progress, the table, the JSON file and the exit status."""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench.gpu_check.parts import PARTS
from bench.gpu_check.plan import Part, Plan, run_part, select
from bench.gpu_check.results import FAILED, Row, summary, table
from bench.machine import describe_commit, describe_machine, keep_freed_memory, package_versions
from bench.measuring import Device, Settings
from bench.progress import progress_bar
from cocodata.files import write_atomically
from cocodata.text import duration
from experiments.runtime.devices import idle_gpus, require_usable_gpus
from experiments.runtime.gpus import DeviceError

FORMAT = 1
_INTERRUPTED = 130  # as a shell reports SIGINT
_NAMES = ", ".join(part.name for part in PARTS)


def choose_device(option: str) -> tuple[Device, str]:
    """Return the device to check, and a line that says why it is this one.

    Raises:
        DeviceError: There is a GPU that torch cannot use, or none although one was asked for.
    """
    if option == "cpu":
        return "cpu", "checking the processor, as asked for, with smaller numbers"
    require_usable_gpus()
    if torch.cuda.is_available():
        return "cuda", f"checking {torch.cuda.get_device_name()}"
    if notice := idle_gpus():
        raise DeviceError(f"{notice}. To check the processor: DEVICE=cpu")
    if option == "cuda":
        raise DeviceError("there is no GPU that torch can use; DEVICE=cpu checks the processor")
    return "cpu", "no GPU here: checking the processor, with smaller numbers"


def plan_for(
    device: Device, settings: Settings, *, minutes: float, quick: bool, data: Path | None = None
) -> Plan:
    """Return the sizes for a device."""
    on_gpu = device == "cuda"
    return Plan(
        device=device,
        settings=settings,
        data=data,
        batch_sizes=(2,) if quick else (16, 64, 128) if on_gpu else (4, 16),
        seconds=0.2 if quick else 3.0,
        deadline=time.monotonic() + 60 * minutes,
    )


def run_parts(
    parts: Sequence[Part], plan: Plan, console: Console, rows: list[Row], save: Path | None
) -> bool:
    """Run the parts one after the other; return whether the user interrupted them.

    Rows are added as they are known, and the file is written after each part.
    """
    expected = [part.expected_seconds(plan.device) for part in parts]
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(expected))

        def report(row: Row) -> None:
            rows.append(row)
            progress.update(task, description=f"{row.part}: {row.name}")
            if row.verdict == FAILED:
                console.print(str(row), style="red", markup=False, highlight=False)

        try:
            for index, part in enumerate(parts):
                progress.update(task, description=f"{part.name}: {part.title}")
                if not console.is_terminal:
                    left = duration(sum(expected[index:]))
                    console.print(f"{part.name}: {part.title} (about {left} left)", markup=False)
                run_part(part, plan, report)
                progress.update(task, advance=expected[index])
                if save is not None:
                    write_results(save, plan, rows, complete=False)
        except KeyboardInterrupt:
            return True
    return False


def write_results(file: Path, plan: Plan, rows: Sequence[Row], *, complete: bool) -> None:
    """Write the rows with everything that they depend on."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "complete": complete,
        "device": plan.device,
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "model": plan.settings.model,
        "image_size": plan.settings.image_size,
        "rows": [row.as_dict() for row in rows],
    }
    write_atomically(file, json.dumps(content, indent=1) + "\n")


def main(
    *,
    parts: Annotated[
        str, typer.Option(help=f"Parts to run, separated by commas; default: all. {_NAMES}.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Data set for the speed of input; default: the generated one."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto: a GPU if there is one; cpu: the processor; cuda.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time after which no further part is started.")
    ] = 10.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: one per core.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small and short, to try the check itself.")
    ] = False,
) -> None:
    """Check that this machine's GPU computes, decodes and trains as it should, and how fast.

    Prints one table. The exit status is 1 if something is beyond its limit, and 130 after Ctrl-C.
    """
    console = Console(stderr=True, soft_wrap=True)
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{device}: choose auto, cpu or cuda", param_hint="--device")
    try:
        chosen = select(PARTS, parts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--parts") from error
    rows: list[Row] = []
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        try:
            kind, line = choose_device(device)
        except DeviceError as error:
            # What is wrong with the machine is for the first part to find.
            kind, line = "cuda", str(error)
            rows.append(Row("device", "a GPU that torch can use", FAILED, detail=line))
            chosen = [part for part in chosen if part.name == "machine"]
        console.print(line, markup=False, highlight=False)
        keep_freed_memory()
        count = threads or len(os.sched_getaffinity(0))
        os.environ["OMP_NUM_THREADS"] = str(count)  # of the parts' processes
        settings = Settings(
            data=Path(),
            scratch=Path(scratch),
            batch_size=2,
            gpu_batch_size=2,
            image_size=512 if kind == "cuda" else 128,
            threads=count,
            coco_images=1,
            model="efficientdet_d0" if kind == "cuda" else "tiny",
        )
        plan = plan_for(kind, settings, minutes=minutes, quick=quick, data=data)
        interrupted = run_parts(chosen, plan, console, rows, out)
    output = Console()
    output.print(table(rows))
    output.print(summary(rows) + (", then interrupted" if interrupted else ""), highlight=False)
    if out is not None:
        write_results(out, plan, rows, complete=not interrupted)
        console.print(f"wrote {out}", highlight=False)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
    if any(row.verdict == FAILED for row in rows):
        raise typer.Exit(1)
