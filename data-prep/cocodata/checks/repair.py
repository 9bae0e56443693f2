"""Repair of a data set: only damaged files are unpacked or downloaded again."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from cocodata.checks.problems import CheckReport, ProblemKind
from cocodata.checks.verify import (
    NOT_IN_MANIFEST,
    Verification,
    verify_dataset,
    verify_files,
)
from cocodata.download.archives import Archive
from cocodata.download.extract import extract_files
from cocodata.download.fetching import Fetcher
from cocodata.errors import DatasetError
from cocodata.files import write_atomically
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import hash_file

ARCHIVES = "archives"
"""Where archives are kept within a data set folder; not part of the data set itself."""

_SOURCES = "sources.json"

_FILE_PROBLEMS = frozenset(
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
    """Record next to downloaded archives where they came from."""
    tree = [{"url": each.url, "digest": each.digest, "size": each.size} for each in archives]
    write_atomically(folder / _SOURCES, orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n")


def sources(folder: Path) -> list[Archive | Path]:
    """Return where a data set's files can be restored from: archives on disk, then servers.

    Raises:
        DatasetError: the record of where archives came from is damaged.
    """
    archives: list[Archive] = []
    if (folder / _SOURCES).is_file():
        try:
            tree = orjson.loads((folder / _SOURCES).read_bytes())
            archives = [Archive(each["url"], each["digest"], each["size"]) for each in tree]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{folder / _SOURCES}: damaged ({error!r}). Delete it") from None
    return [*sorted(folder.glob("*.zip")), *archives]


def repair_dataset(
    data: Path,
    archives: Sequence[Archive | Path],
    fetcher: Fetcher,
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Verification, dict[str, str]]:
    """Verify a data set, and restore its damaged files.

    A file from an archive replaces a damaged one if it matches the manifest, or if there is no
    manifest. Problems that were repaired are not in the report.

    Args:
        data: the data set folder.
        archives: where to take files from, in this order.
        fetcher: makes the requests.
        workers: number of processes; None for one per core.
        advance: called with how many more files are done in the first verification.

    Returns:
        What is still wrong, to be given to `record_result`, and the source of each restored file.

    Raises:
        DatasetError: the folder is not a data set, or there is nothing to restore it from.
    """
    verification = verify_dataset(data, workers=workers, advance=advance)
    restored: dict[str, str] = {}
    while damaged := _damaged(verification.report) - restored.keys():
        if not archives:
            raise DatasetError(
                f"{verification.report.message()}\nThere is nothing to repair from: no archive in "
                f"{data / ARCHIVES}, and no record of where they came from. Name one with ARCHIVES="
            )
        new = _restore(data, verification, sorted(damaged), archives, fetcher)
        restored |= new
        if any(DatasetFolder.is_annotation(path) for path in new):
            verification = verify_dataset(data, workers=workers)
            continue
        others = [p for p in verification.report.problems if p.where not in new]
        verification = replace(verification, report=replace(verification.report, problems=others))
        verify_files(data, verification, sorted(new), workers=workers)
        break
    return verification, restored


def _damaged(report: CheckReport) -> set[str]:
    return {
        problem.where
        for problem in report.problems
        if problem.kind in _FILE_PROBLEMS and problem.detail != NOT_IN_MANIFEST
    }


def _restore(
    data: Path,
    verification: Verification,
    damaged: Sequence[str],
    archives: Sequence[Archive | Path],
    fetcher: Fetcher,
) -> dict[str, str]:
    staging = data / ".repair"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        found = extract_files(archives, damaged, staging, fetcher)
        for path in list(found):
            if verification.manifest is not None:
                wanted = verification.manifest.files.get(path)
                if wanted is not None and hash_file(staging / path) != wanted:
                    del found[path]  # From another version: the problem remains.
                    continue
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).replace(data / path)
    finally:
        shutil.rmtree(staging)
    return found
