"""`python -m cocodata sync`: copy a data set to all hosts, or verify their copies."""

import asyncio
import re
from pathlib import Path
from typing import Annotated

import orjson
import typer

from cocodata.errors import DatasetError
from cocodata.files import write_atomically
from cocodata.sync.control import SyncOptions, SyncRun
from cocodata.sync.display import live_view
from cocodata.sync.exchange import SyncResult
from cocodata.sync.hosts import control_machine, read_hosts
from cocodata.sync.limits import raise_open_files
from cocodata.sync.pack import read_image_metadata
from cocodata.text import count

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def bytes_per_second(text: str) -> int:
    """Return a bandwidth such as 500Mbit or 60MB (a second) in bytes a second.

    Raises:
        DatasetError: it cannot be parsed.
    """
    match = re.fullmatch(r"([0-9.]+) ?([kmg]?)(bit|b)(/s)?", text.strip().lower())
    try:
        assert match is not None
        amount = float(match[1]) * _UNITS[match[2]]
    except (AssertionError, ValueError):
        raise DatasetError(f"{text!r}: not a bandwidth. Write 500Mbit or 60MB (a second)") from None
    return max(1, round(amount / 8 if match[3] == "bit" else amount))


def sync(
    name: Annotated[str, typer.Argument(help="Name of the data set.", show_default=False)],
    *,
    packed: Annotated[Path, typer.Option(help="Folder that it was packed into.")],
    hosts: Annotated[Path, typer.Option(help="JSON list of hosts.")],
    store: Annotated[str, typer.Option(help="Folder on the hosts for images.")],
    link: Annotated[str, typer.Option(help="Path on the hosts that trials use.")],
    limit: Annotated[
        str | None,
        typer.Option(help="Highest rate at which a host sends or receives, such as 500Mbit."),
    ] = None,
    source_address: Annotated[
        str, typer.Option(help="Address that hosts see for this machine; default: found out.")
    ] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify the copies on the hosts instead.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --verify: repair damaged pieces.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the result into this file.")] = None,
    terminal: Annotated[
        Path | None, typer.Option(help="Show progress on this terminal's device.")
    ] = None,
) -> None:
    """Copy a packed data set to all hosts, which send it to each other, and switch to it."""
    metadata = read_image_metadata(packed, name)
    targets = read_hosts(hosts)
    raise_open_files(len(targets))
    options = SyncOptions(
        store=store,
        link=link,
        limit=bytes_per_second(limit) if limit else 0,
        source=control_machine(source_address),
    )
    with live_view(metadata.size, terminal) as show:
        run = SyncRun(metadata, packed, targets, options, show)
        result = asyncio.run(run.verify(repair=repair) if verify else run.sync())
    if json is not None:
        write_atomically(json, orjson.dumps(result.as_dict(), option=orjson.OPT_INDENT_2))
    report(result, metadata.size)


def report(result: SyncResult, size: int) -> None:
    """Print the result for each host; raise an error that names those that failed."""
    for name, host in result.hosts.items():
        if host.failure is None:
            print(f"{name}: {', '.join(host.changes) or 'up to date'}")
            for note in host.notes:
                print(f"{name}: {note}")
    if result.seconds:
        print(
            f"transfer: {result.seconds:.1f} s, this machine sent {result.sent / 1e9:.2f} GB, "
            f"{result.sent / size:.2f} copies"
        )
    print(f"version {result.version}; changed={int(result.changed)}")
    if result.failed:
        lines = "\n".join(f"  {name}: {result.hosts[name].failure}" for name in result.failed)
        raise DatasetError(
            f"{count(len(result.failed), 'host')} of {len(result.hosts)} failed\n{lines}\n"
            "The others have the data set. Run the same command again to resume with these"
        )
