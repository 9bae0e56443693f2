"""`python -m container_images`: send images of this machine's engine to hosts."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cocodata.errors import DatasetError
from cocodata.files import write_atomically
from cocodata.sync.commands import bytes_per_second
from cocodata.sync.display import live_view
from cocodata.sync.hosts import control_machine, read_hosts
from cocodata.sync.limits import raise_open_files
from container_images.errors import ImageError
from container_images.export import BlobCache
from container_images.send import SendOptions, SendRun


def send(
    *,
    hosts: Annotated[Path, typer.Option(help="JSON list of hosts.")],
    images: Annotated[Path, typer.Option(help="JSON: host -> names of its images.")],
    cache: Annotated[Path, typer.Option(help="Folder on this machine for layers.")],
    folder: Annotated[str, typer.Option(help="Folder on the hosts for layers on their way.")],
    result: Annotated[Path, typer.Option(help="Write the result into this file.")],
    check: Annotated[bool, typer.Option("--check", help="Compare, and change nothing.")] = False,
    limit: Annotated[
        str, typer.Option(help="Highest rate at which a host sends or receives, such as 500Mbit.")
    ] = "",
    source_address: Annotated[
        str, typer.Option(help="Address that hosts see for this machine; default: found out.")
    ] = "",
    terminal: Annotated[
        Path | None, typer.Option(help="Show progress on this terminal's device.")
    ] = None,
) -> None:
    """Bring images to hosts, which send them to each other."""
    wanted = json.loads(images.read_text())
    targets = read_hosts(hosts)
    raise_open_files(len(targets))
    names = [name for listed in wanted.values() for name in listed]
    blobs = BlobCache(cache)
    found = blobs.images(names, lambda text: print(text, file=sys.stderr, flush=True))
    options = SendOptions(
        folder=folder,
        limit=bytes_per_second(limit) if limit else 0,
        source=control_machine(source_address),
    )
    size = sum(sum(image.sizes) for image in found.values())
    with live_view(size, terminal) as show:
        needed = {host: [found[name] for name in listed] for host, listed in wanted.items()}
        run = SendRun(blobs, needed, targets, options, show)
        done = asyncio.run(run.check() if check else run.send())
    document = {
        **done.as_dict(),
        "states": run.states,
        "images": {name: image.names[1] for name, image in found.items()},
    }
    write_atomically(result, json.dumps(document, indent=1))


if __name__ == "__main__":
    try:
        typer.run(send)
    except (DatasetError, ImageError) as error:
        sys.exit(f"error: {error}")
