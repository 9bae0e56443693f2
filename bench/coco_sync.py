"""Measures coco-sync to many hosts, compared with rsync to each in turn and to all in parallel.

The hosts are network namespaces on this machine, with links that tc limits in both directions. They
share its cores, so each time comes with the CPU utilization. Run as root on an idle machine:
`make bench-coco-sync`.
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

from bench.machine import describe_commit, describe_machine, is_busy, machine_name
from bench.network_lab import DATA, STORE, Lab, LabHost, why_unavailable
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
class TransferResult:
    """One measured transfer.

    Attributes:
        way: coco-sync, or rsync in turn or in parallel.
        hosts: Number of receiving hosts.
        size: Bytes per host.
        seconds: Time until the last host had all data.
        wire: Seconds that one copy takes on one link.
        copies: Number of copies that the source sent.
        busy: CPU utilization of this machine, from 0 to 1.
        with_mounts: Seconds including connecting, mounting and activating the new version.
    """

    way: str
    hosts: int
    size: int
    seconds: float
    wire: float
    copies: float
    busy: float
    with_mounts: float | None = None


def _cpu_ticks() -> tuple[int, int]:
    """Return the busy ticks of all cores, and all their ticks."""
    with Path("/proc/stat").open() as file:
        ticks = [int(each) for each in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _time(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds that a call takes, and the CPU utilization meanwhile."""
    busy_before, all_before = _cpu_ticks()
    start = time.monotonic()
    work()
    seconds = time.monotonic() - start
    busy_after, all_after = _cpu_ticks()
    return seconds, (busy_after - busy_before) / max(1, all_after - all_before)


def _bytes_sent(host: LabHost) -> int:
    # The ninth number after the interface's name.
    line = host.run("grep eth0: /proc/self/net/dev")
    return int(line.partition(":")[2].split()[8])


def _pack(folder: Path, mebibytes: int) -> ImageMetadata:
    """Create a squashfs image of random bytes."""
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


def _measure_sync(folder: Path, metadata: ImageMetadata, hosts: int, rate: int) -> TransferResult:
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
        before = _bytes_sent(source)
        total, busy = _time(lambda: asyncio.run(run.sync()))
        if run.result.failed:
            raise RuntimeError(f"{run.result.failed} failed: {run.result.hosts}")
        for each in others:
            each.run(f"test -s {DATA}/bench/payload")
        copies = (_bytes_sent(source) - before) / metadata.size
    shutil.rmtree(folder / "lab")
    wire = metadata.size * 8 / rate / 1e6
    return TransferResult(
        "coco-sync", hosts, metadata.size, run.result.seconds, wire, copies, busy, with_mounts=total
    )


def _measure_rsync(
    folder: Path, mebibytes: int, hosts: int, rate: int, *, parallel: bool
) -> TransferResult:
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

        before = _bytes_sent(source)
        seconds, busy = _time(copy)
        size = mebibytes << 20
        copies = (_bytes_sent(source) - before) / size
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
    shutil.rmtree(folder / "lab")
    way = f"rsync {'in parallel' if parallel else 'in turn'}"
    return TransferResult(way, hosts, size, seconds, size * 8 / rate / 1e6, copies, busy)


def markdown(runs: list[TransferResult], rate: int, *, busy: bool) -> str:
    """Return the results as a Markdown table."""
    lines = [
        f"Links of {rate} Mbit/s each way. The ratio is the time over the wire time of one copy.",
        *(["The machine was also busy with other work."] if busy else []),
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
    hosts: Annotated[
        str, typer.Option(help="Numbers of hosts, separated by commas.")
    ] = "1,2,4,8,16",
    rate: Annotated[int, typer.Option(help="Speed of each link, Mbit/s.")] = 80,
    mebibytes: Annotated[int, typer.Option(help="Size of the data for coco-sync.")] = 256,
    rsync_mebibytes: Annotated[
        int,
        typer.Option(
            help="Size of the data for rsync, whose time is proportional to it; 0 skips rsync."
        ),
    ] = 64,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Measure coco-sync and rsync over links of limited speed."""
    console = Console(stderr=True, highlight=False)
    programs = [each for each in ("mksquashfs", "rsync") if shutil.which(each) is None]
    if reason := why_unavailable() or (
        f"not installed: {', '.join(programs)}" if programs else None
    ):
        console.print(f"error: {reason}", style="red")
        raise typer.Exit(2)
    machine = describe_machine()
    busy = is_busy(machine)
    runs: list[TransferResult] = []
    with tempfile.TemporaryDirectory(prefix="coco-sync-") as scratch:
        folder = Path(scratch)
        metadata = _pack(folder, mebibytes)
        for number in map(int, hosts.split(",")):
            measurements: list[Callable[[], TransferResult]] = [
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
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    document = {
        "made": now,
        "commit": describe_commit(),
        "machine": machine,
        "machine_busy": busy,
        "rate_mbit": rate,
        "runs": [asdict(run) for run in runs],
    }
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"coco-sync-{now[:10]}-{machine_name(machine)}"
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_name(f"{stem.name}.md").write_text(markdown(runs, rate, busy=busy))
    sys.stdout.write(markdown(runs, rate, busy=busy))


if __name__ == "__main__":
    typer.run(main)
