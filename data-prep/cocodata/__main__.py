"""The command line: `python -m cocodata --help`."""

import sys
import zipfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cocodata.checks.check import check_dataset
from cocodata.checks.problems import CheckReport
from cocodata.checks.repair import ARCHIVES, repair_dataset, sources, write_sources
from cocodata.checks.verify import record_result, verify_dataset
from cocodata.download.archives import COCO_2017, Archive, at_mirror, parse_archive
from cocodata.download.download import download as download_archives
from cocodata.download.extract import dataset_members, extract
from cocodata.download.fetching import Fetcher
from cocodata.download.progress import byte_bars, download_display, progress_bar
from cocodata.errors import DatasetError
from cocodata.format.layouts import DatasetFolder, splits
from cocodata.format.manifest import build_manifest, require_writable, write_manifest
from cocodata.mini.mini import generate_mini_coco
from cocodata.sync.commands import sync
from cocodata.sync.pack import pack_dataset
from cocodata.text import count

app = typer.Typer(
    help="COCO data sets on disk: generate, download, check, verify, pack and sync.",
    no_args_is_help=True,
    add_completion=False,
)
_errors = Console(stderr=True, soft_wrap=True, highlight=False)

Data = Annotated[
    Path,
    typer.Argument(help="Folder with annotations/, train2017/ and val2017/.", show_default=False),
]
Archives = Annotated[
    list[str] | None,
    typer.Option(
        help="URL, or URL#sha256:... (or md5, sha1, sha512), of a zip file; may be repeated. "
        "Default: those of COCO 2017."
    ),
]
ArchiveFolder = Annotated[
    Path | None,
    typer.Option(
        help="Where zip files are kept, or are already; default: archives/ in the data set folder."
    ),
]
Proxy = Annotated[
    str | None, typer.Option(help="Address of a proxy; default: from the environment.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")]


@app.command()
def mini(
    out: Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)],
    train: Annotated[int, typer.Option(min=1, help="Images in train2017.")] = 480,
    val: Annotated[int, typer.Option(min=1, help="Images in val2017.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
) -> None:
    """Generate the mini COCO, unless the folder already holds the same one."""
    with progress_bar("Drawing images", train + val) as advance:
        made = generate_mini_coco(out, num_train=train, num_val=val, seed=seed, advance=advance)
    print(f"{out}: {'generated' if made else 'already exists'}, {train} + {val} images")


@app.command()
def manifest(
    data: Data,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set; default: that of its folder.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Hash every file and write manifest.json; run `verify` again afterwards."""
    require_writable(data)
    with progress_bar("Hashing files", len(DatasetFolder(data).files())) as advance:
        built = build_manifest(data, name or data.resolve().name, workers=workers, advance=advance)
    write_manifest(data, built)
    print(f"{data}: {count(len(built.files), 'file')}, version {built.version}")


@app.command()
def download(
    out: Annotated[Path, typer.Argument(help="Folder of the data set.", show_default=False)],
    *,
    archive: Archives = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="Address of a server that has the archives under the same paths."),
    ] = None,
    proxy: Proxy = None,
    connections: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 8,
    folder: ArchiveFolder = None,
    workers: Workers = None,
) -> None:
    """Download, check and unpack COCO 2017 or other archives; resumes where it stopped."""
    wanted = [parse_archive(text) for text in archive or []] or list(COCO_2017)
    if mirror:
        wanted = [at_mirror(each, mirror) for each in wanted]
    folder = folder or out / ARCHIVES
    with download_display() as (listener, note):
        fetcher = Fetcher(proxy=proxy, connections=connections, note=note)
        # Unpacked images are about as large as their archives. What is already unpacked needs no
        # more space; the exact need is checked again before unpacking.
        reserve = (
            0
            if DatasetFolder(out).annotation_folder.is_dir()
            else sum(each.size or 0 for each in wanted)
        )
        files = download_archives(
            wanted, folder, fetcher, connections=connections, reserve=reserve, listener=listener
        )
    write_sources(folder, wanted)
    written = 0
    for file in files:
        with zipfile.ZipFile(file) as opened:
            total = len(dataset_members(opened))
        with progress_bar(f"Unpacking {file.name}", total) as advance:
            written += extract(file, out, workers=workers, advance=advance)
    names = splits(out)
    print(f"{out}: {count(written, 'file')} unpacked; splits {names[0]} and {names[1]}")


@app.command()
def verify(
    data: Data,
    *,
    workers: Workers = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Restore damaged files, and only those.")
    ] = False,
    archive: Archives = None,
    proxy: Proxy = None,
    folder: ArchiveFolder = None,
) -> None:
    """Decode every image, compare every hash, and mark the manifest as verified if all agree."""
    require_writable(data)
    with progress_bar("Verifying files", len(DatasetFolder(data).files())) as advance:
        if not repair:
            verification = verify_dataset(data, workers=workers, advance=advance)
        else:
            named: list[Archive | Path] = [parse_archive(text) for text in archive or []]
            verification, restored = repair_dataset(
                data,
                named or sources(folder or data / ARCHIVES),
                Fetcher(proxy=proxy, note=lambda note: _errors.print(note, markup=False)),
                workers=workers,
                advance=advance,
            )
            for path, source in restored.items():
                print(f"{path}: restored from {source}")
    built = record_result(data, verification)
    _print_report(verification.report)
    print(f"{data}: verified, {count(len(built.files), 'file')}, version {built.version}")


@app.command()
def pack(
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder for the image.", show_default=False)],
    *,
    name: Annotated[
        str | None, typer.Option(help="Name on the hosts; default: that in the manifest.")
    ] = None,
) -> None:
    """Pack a verified data set into one read-only image for `make coco-sync`."""
    with byte_bars() as advance:
        metadata, made = pack_dataset(data, out, name=name, advance=advance)
    print(
        f"{out / metadata.name / metadata.image}: {'packed' if made else 'already packed'}, "
        f"{metadata.size / 1e9:.2f} GB, version {metadata.version}"
    )


@app.command()
def check(
    data: Data,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; default: depends on the number of cores.")
    ] = None,
) -> None:
    """Check a data set as training does before it starts: fast, without decoding images."""
    names = splits(data)
    with progress_bar("Checking images", None) as advance:
        report = check_dataset(data, names, threads=threads, advance=advance)
    _print_report(report)
    result = "agrees with its verified manifest" if report.used_manifest else "no problems"
    print(f"{data}: {result}")


app.command()(sync)


def _print_report(report: CheckReport) -> None:
    """Print the notes; raise an error if there are problems."""
    for note in report.notes:
        print(note)
    if report.problems:
        raise DatasetError(report.message())


def main() -> None:
    """Run the command line; errors that a user can fix end without a traceback."""
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
