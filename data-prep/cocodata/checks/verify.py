"""Full verification of a data set: every byte hashed, every image decoded."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cocodata.checks.check import check_dataset
from cocodata.checks.problems import CheckReport, Problem, ProblemKind, image_problem
from cocodata.format.images import ImageError, check_decoding
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import (
    FileEntry,
    Manifest,
    chunks,
    hash_file,
    read_manifest,
    usable_cores,
    write_manifest,
)

NOT_IN_MANIFEST = "not in the manifest"


@dataclass(frozen=True)
class _AnnotatedImage:
    """An image file as its split's annotations describe it."""

    path: str
    split: str
    image_id: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Verification:
    """What full verification of a data set found; nothing has been written yet.

    Attributes:
        report: problems and notes.
        manifest: the manifest as it was before; None if there was none.
        entries: size and hash of every file.
        images: the image files that the annotations name.
    """

    report: CheckReport
    manifest: Manifest | None
    entries: dict[str, FileEntry]
    images: dict[str, _AnnotatedImage]


def verify_dataset(
    data: Path, *, workers: int | None = None, advance: Callable[[int], None] = lambda _: None
) -> Verification:
    """Check a data set completely; `record_result` then writes the result into its manifest.

    Beyond the check before training, every image is decoded, and every file's hash is compared
    with the manifest.

    Args:
        data: the data set folder.
        workers: number of processes; None for one per core.
        advance: called with how many more files are done, of `DatasetFolder(data).files()`.

    Raises:
        DatasetError: the folder is not a data set, or its manifest is damaged.
    """
    folder = DatasetFolder(data)
    split_names = folder.splits()
    manifest = read_manifest(data)
    paths = folder.files()
    report = check_dataset(data, split_names, use_manifest=False)
    verification = Verification(report, manifest, {}, _annotated_images(report, split_names))
    already_reported = _unusable_images(report)
    verify_files(data, verification, paths, workers=workers, advance=advance)
    if manifest is not None:
        missing = manifest.files.keys() - verification.entries.keys()
        _add_differences(verification, missing, already_reported)
    return verification


def verify_files(
    data: Path,
    verification: Verification,
    paths: Sequence[str],
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Decode and hash files, and add what is wrong with them to a verification."""
    problems, images = verification.report.problems, verification.images
    already_reported = _unusable_images(verification.report)
    with ProcessPoolExecutor(workers or usable_cores()) as pool:
        tasks = ([(path, images.get(path)) for path in chunk] for chunk in chunks(paths, 64))
        for done in pool.map(partial(_verify_chunk, data), tasks):
            for path, entry, problem in done:
                verification.entries[path] = entry
                if problem is not None and (problem.split, problem.image_id) not in (
                    already_reported
                ):
                    problems.append(problem)
            advance(len(done))
    _add_differences(verification, paths, already_reported)


def record_result(data: Path, verification: Verification) -> Manifest:
    """Write the result of a verification into the data set's manifest, and return the manifest.

    The manifest is marked as verified if nothing is wrong; otherwise the mark is removed. A data
    set without a manifest gets one if nothing is wrong.
    """
    report = verification.report
    manifest = verification.manifest or Manifest(data.resolve().name, verification.entries)
    if not report.problems:
        images = {name: len(report.annotations[name].image_ids) for name in report.split_names}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = replace(manifest, verified={"at": at, "images": images})
        write_manifest(data, manifest)
    elif manifest.verified is not None:
        manifest = replace(manifest, verified=None)
        write_manifest(data, manifest)
    return manifest


def _annotated_images(
    report: CheckReport, split_names: Sequence[str]
) -> dict[str, _AnnotatedImage]:
    images = {}
    for name in split_names:
        annotations = report.annotations.get(name)
        if annotations is None:
            continue
        for file_name, image_id, size in zip(
            annotations.file_names,
            annotations.image_ids.tolist(),
            annotations.sizes.tolist(),
            strict=True,
        ):
            path = DatasetFolder.image_path(name, file_name)
            images[path] = _AnnotatedImage(path, name, image_id, (size[0], size[1]))
    return images


def _verify_chunk(
    data: Path, files: list[tuple[str, _AnnotatedImage | None]]
) -> list[tuple[str, FileEntry, Problem | None]]:
    return [_verify_file(data, path, image) for path, image in files]


def _verify_file(
    data: Path, path: str, image: _AnnotatedImage | None
) -> tuple[str, FileEntry, Problem | None]:
    if image is None:
        return path, hash_file(data / path), None
    content = (data / path).read_bytes()
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    try:
        check_decoding(content, image.size, formats=("JPEG",))
    except ImageError as error:
        return path, entry, image_problem(error, path, image.split, image.image_id)
    return path, entry, None


def _unusable_images(report: CheckReport) -> set[tuple[str, int | None]]:
    """Return the images that already have a problem, which is not reported a second time."""
    return {(problem.split, problem.image_id) for problem in report.problems}


def _add_differences(
    verification: Verification,
    paths: Iterable[str],
    already_reported: Collection[tuple[str, int | None]],
) -> None:
    """Compare files with the manifest; add those that differ and are not reported yet."""
    manifest, entries, report = verification.manifest, verification.entries, verification.report
    if manifest is None:
        return
    for path in sorted(paths):
        if entries.get(path) == manifest.files.get(path):
            continue
        if path not in entries:
            detail = "missing"
        elif path not in manifest.files:
            detail = NOT_IN_MANIFEST
        else:
            detail = "size or hash differs from the manifest"
        image = verification.images.get(path)
        split = DatasetFolder.split_of(path, report.split_names) or report.split_names[0]
        image_id = image.image_id if image else None
        if image_id is None or (split, image_id) not in already_reported:
            report.problems.append(Problem(ProblemKind.CHANGED, path, detail, split, image_id))
