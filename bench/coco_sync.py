"""How long coco-sync takes to many hosts, beside rsync to each in turn and to all in parallel.

Hosts are namespaces of this machine behind links that tc shapes in both directions, so all of them
share its cores: what share of these was busy stands beside each time. Run as root with nothing else
going on: `make bench-coco-sync`.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.machine import busy, commit, machine, machine_kind
from bench.network_lab import DATA, STORE, Lab, LabHost, missing
from cocodata import DatasetFolder
from cocodata.sync.control import SyncOptions, SyncRun
from cocodata.sync.hosts import Host
from cocodata.sync.pack import ImageMetadata
from cocodata.sync.torrent import make_torrent

RESULTS = Path(__file__).resolve().parent / "results"
VERSION = "5ca1ab1e" * 8
_RSYNC = """
[store]
path = {store}
read only = false
use chroot = false
uid = 0
gid = 0
"""


@dataclass
class Measured:
    """One run.

    Attributes:
        way: coco-sync, or rsync in turn or in parallel.
        hosts: how many.
        size: bytes for each.
        seconds: until the last one had it.
        wire: seconds that one copy takes on one link.
        copies: how often the source sent the data.
        busy: share of this machine's cores that was busy.
        with_mounts: seconds with connections, mounts and the switch.
    """

    way: str
    hosts: int
    size: int
    seconds: float
    wire: float
    copies: float
    busy: float
    with_mounts: float | None = None


def _cpu() -> tuple[int, int]:
    """Return the ticks that the cores were busy, and all ticks."""
    with Path("/proc/stat").open() as file:
        ticks = [int(each) for each in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    busy, all_ = _cpu()
    begin = time.monotonic()
    work()
    seconds = time.monotonic() - begin
    now_busy, now_all = _cpu()
    return seconds, (now_busy - busy) / max(1, now_all - all_)


def _sent(host: LabHost) -> int:
    # Received and sent are the first and the ninth number after the name.
    line = host.run("grep eth0: /proc/self/net/dev")
    return int(line.partition(":")[2].split()[8])


def _pack(folder: Path, mebibytes: int) -> ImageMetadata:
    """Make an image of random bytes, which hosts can mount."""
    content = folder / "content"
    content.mkdir(parents=True)
    with (content / "payload").open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(1 << 20))
    DatasetFolder(content).manifest_file.write_text(json.dumps({"version": VERSION}))
    image = folder / "packed" / "bench" / f"bench-{VERSION[:16]}.squashfs"
    image.parent.mkdir(parents=True)
    options = ["-noI", "-noId", "-noD", "-noF", "-noX", "-quiet", "-no-progress"]
    subprocess.run(["mksquashfs", str(content), str(image), *options], check=True)
    shutil.rmtree(content)
    (image.parent / "bench.torrent").write_bytes(make_torrent(image))
    size = image.stat().st_size
    return ImageMetadata("bench", VERSION, image.name, "bench.torrent", size, "", {}, "")


def _measure_sync(folder: Path, metadata: ImageMetadata, hosts: int, rate: int) -> Measured:
    with Lab(folder / "lab", hosts + 1, rate=f"{rate}mbit") as lab:
        source, *others = lab.hosts
        program = "/usr/bin/python3"
        options = SyncOptions(
            STORE,
            f"{DATA}/bench",
            source=Host("source", source.address, (*source.enter, program), listen=source.address),
        )
        targets = [
            Host(each.name, each.address, (*each.enter, program), listen=each.address)
            for each in others
        ]
        run = SyncRun(metadata, folder / "packed", targets, options, lambda *_: None)
        before = _sent(source)
        total, busy = _timed(lambda: asyncio.run(run.sync()))
        if run.result.failed:
            raise RuntimeError(f"{run.result.failed} failed: {run.result.hosts}")
        for each in others:
            each.run(f"test -s {DATA}/bench/payload")
        copies = (_sent(source) - before) / metadata.size
    shutil.rmtree(folder / "lab")
    wire = metadata.size * 8 / rate / 1e6
    return Measured(
        "coco-sync", hosts, metadata.size, run.result.seconds, wire, copies, busy, with_mounts=total
    )


def _measure_rsync(
    folder: Path, mebibytes: int, hosts: int, rate: int, *, parallel: bool
) -> Measured:
    payload = folder / "payload"
    if not payload.exists():
        payload.write_bytes(os.urandom(mebibytes << 20))
    with Lab(folder / "lab", hosts + 1, rate=f"{rate}mbit") as lab:
        source, *others = lab.hosts
        configuration = folder / "rsyncd.conf"
        configuration.write_text(_RSYNC.format(store=STORE))
        daemons = [
            subprocess.Popen(
                [*each.enter, "rsync", "--daemon", "--no-detach", f"--config={configuration}"]
            )
            for each in others
        ]
        time.sleep(1)

        def copy() -> None:
            running: list[subprocess.Popen[bytes]] = []
            for each in others:
                target = f"rsync://{each.address}/store/"
                command = [
                    *source.enter,
                    "rsync",
                    "--whole-file",
                    "--inplace",
                    str(payload),
                    target,
                ]
                running.append(subprocess.Popen(command))
                if not parallel:
                    running[-1].wait()
            if any(process.wait() for process in running):
                raise RuntimeError("rsync failed")

        before = _sent(source)
        seconds, busy = _timed(copy)
        size = mebibytes << 20
        copies = (_sent(source) - before) / size
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
    shutil.rmtree(folder / "lab")
    way = f"rsync {'in parallel' if parallel else 'in turn'}"
    return Measured(way, hosts, size, seconds, size * 8 / rate / 1e6, copies, busy)


def markdown(runs: list[Measured], rate: int, *, others: bool) -> str:
    """Return the results as a table, which says so where others were using the machine."""
    lines = [
        f"Links of {rate} Mbit/s each way; times in multiples of the wire time of one copy.",
        *(["Others were using this machine's cores at the same time."] if others else []),
        "",
        "| hosts | way | MiB | seconds | wire time | ratio | copies sent | cores busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.hosts} | {run.way} | {run.size / 2**20:.0f} | {run.seconds:.1f} | {run.wire:.1f} "
        f"| {run.seconds / run.wire:.2f} | {run.copies:.2f} | {run.busy:.0%} |"
        for run in sorted(runs, key=lambda each: (each.hosts, each.way))
    ]
    return "\n".join(lines) + "\n"


def main(
    *,
    hosts: Annotated[str, typer.Option(help="How many, separated by commas.")] = "1,2,4,8,16",
    rate: Annotated[int, typer.Option(help="Mbit/s of each link.")] = 80,
    mebibytes: Annotated[int, typer.Option(help="For coco-sync.")] = 256,
    rsync_mebibytes: Annotated[
        int, typer.Option(help="For rsync, whose time is proportional; 0 leaves it out.")
    ] = 64,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Measure coco-sync and rsync on shaped links."""
    console = Console(stderr=True, highlight=False)
    programs = [each for each in ("mksquashfs", "rsync") if shutil.which(each) is None]
    if reason := missing() or (f"missing: {', '.join(programs)}" if programs else None):
        console.print(f"error: {reason}", style="red")
        raise typer.Exit(2)
    found = machine()
    others = busy(found)
    runs: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="coco-sync-") as scratch:
        folder = Path(scratch)
        metadata = _pack(folder, mebibytes)
        for number in map(int, hosts.split(",")):
            measurements: list[Callable[[], Measured]] = [
                partial(_measure_sync, folder, metadata, number, rate)
            ]
            for parallel in (False, True) if rsync_mebibytes else ():
                measurements.append(
                    partial(
                        _measure_rsync, folder, rsync_mebibytes, number, rate, parallel=parallel
                    )
                )
            for measure in measurements:
                run = measure()
                runs.append(run)
                console.print(
                    f"{run.hosts} hosts, {run.way}: {run.seconds:.1f} s, "
                    f"{run.seconds / run.wire:.2f} x wire, {run.copies:.2f} copies, "
                    f"cores {run.busy:.0%} busy"
                )
    made = datetime.now().astimezone().isoformat(timespec="seconds")
    document = {
        "made": made,
        "commit": commit(),
        "machine": found,
        "machine_busy": others,
        "rate_mbit": rate,
        "runs": [asdict(run) for run in runs],
    }
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"coco-sync-{made[:10]}-{machine_kind(found)}"
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_name(f"{stem.name}.md").write_text(markdown(runs, rate, others=others))
    sys.stdout.write(markdown(runs, rate, others=others))


if __name__ == "__main__":
    typer.run(main)
