"""Mending a data set: only the files that are damaged are unpacked or fetched again."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from cocodata.checks.problems import CheckReport, ProblemKind
from cocodata.checks.verify import Inspection, inspect_dataset, inspect_files
from cocodata.download.archives import Archive
from cocodata.download.extract import extract_files
from cocodata.download.fetching import Fetcher
from cocodata.errors import DatasetError
from cocodata.files import write_atomically
from cocodata.format.manifest import hash_file

ARCHIVES = "archives"
"""The folder within a data set's where its archives are kept; it is not part of the data set."""

_SOURCES = "sources.json"

_OF_A_FILE = frozenset(
    {
        ProblemKind.ANNOTATIONS,
        ProblemKind.MISSING,
        ProblemKind.NOT_JPEG,
        ProblemKind.TRUNCATED,
        ProblemKind.SIZE,
        ProblemKind.DECODE,
        ProblemKind.CHANGED,
    }
)


def write_sources(folder: Path, archives: Sequence[Archive]) -> None:
    """Remember beside downloaded archives where they came from."""
    tree = [{"url": each.url, "digest": each.digest, "size": each.size} for each in archives]
    write_atomically(folder / _SOURCES, orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n")


def sources(folder: Path) -> list[Archive | Path]:
    """Return where a data set's files can be had from: archives on disk, then servers."""
    archives: list[Archive] = []
    if (folder / _SOURCES).is_file():
        try:
            tree = orjson.loads((folder / _SOURCES).read_bytes())
            archives = [Archive(each["url"], each["digest"], each["size"]) for each in tree]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{folder / _SOURCES}: not readable ({error!r}). Delete it"
            ) from None
    return [*sorted(folder.glob("*.zip")), *archives]


def repair_dataset(
    data: Path,
    archives: Sequence[Archive | Path],
    fetcher: Fetcher,
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Inspection, dict[str, str]]:
    """Verify a data set, and restore the files that something is wrong with.

    A file from an archive takes the place of a damaged one if it is what the manifest says, or
    where there is no manifest. What was wrong with files and is not any more is not in the report.

    Args:
        data: the data set folder.
        archives: where its files can be had from, in this order.
        fetcher: makes the requests.
        workers: number of processes; None for one per core.
        advance: told how many more files are done in the first look.

    Returns:
        What is wrong after it, to be concluded, and where each file that was restored came from.

    Raises:
        DatasetError: the folder is no data set, or there is nothing to restore it from.
    """
    inspection = inspect_dataset(data, workers=workers, advance=advance)
    restored: dict[str, str] = {}
    while damaged := _damaged(inspection.report) - restored.keys():
        if not archives:
            raise DatasetError(
                f"{inspection.report.message()}\nThere is nothing to repair from: no archive in "
                f"{data / ARCHIVES}, and no note of where they came from. Name one with ARCHIVES="
            )
        new = _restore(data, inspection, sorted(damaged), archives, fetcher)
        restored |= new
        if any(path.startswith("annotations/") for path in new):
            inspection = inspect_dataset(data, workers=workers)
            continue
        others = [p for p in inspection.report.problems if p.where not in new]
        inspection = replace(inspection, report=replace(inspection.report, problems=others))
        inspect_files(data, inspection, sorted(new), workers=workers)
        break
    return inspection, restored


def _damaged(report: CheckReport) -> set[str]:
    return {
        problem.where
        for problem in report.problems
        if problem.kind in _OF_A_FILE and problem.detail != "not in the manifest"
    }


def _restore(
    data: Path,
    inspection: Inspection,
    damaged: Sequence[str],
    archives: Sequence[Archive | Path],
    fetcher: Fetcher,
) -> dict[str, str]:
    beside = data / ".repair"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        found = extract_files(archives, damaged, beside, fetcher)
        for path in list(found):
            if inspection.manifest is not None:
                wanted = inspection.manifest.files.get(path)
                if wanted is not None and hash_file(beside / path) != wanted:
                    del found[path]  # Of another version: it stays a problem.
                    continue
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (beside / path).replace(data / path)
    finally:
        shutil.rmtree(beside)
    return found
