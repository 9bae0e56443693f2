"""The full look at a data set: every byte hashed, every image decoded."""

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cocodata.checks.check import check_dataset, size_failure
from cocodata.checks.problems import CheckReport, Problem, ProblemKind
from cocodata.format.manifest import (
    FileEntry,
    Manifest,
    chunks,
    dataset_files,
    hash_file,
    read_manifest,
    usable_cores,
    write_manifest,
)
from cocodata.format.split import splits


@dataclass(frozen=True)
class _Image:
    """An image file as its split's annotations have it."""

    path: str
    split: str
    image_id: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Inspection:
    """What the full look at a data set found, before anything is concluded from it.

    Attributes:
        report: problems and notes.
        manifest: the manifest that there was.
        entries: size and hash of every file.
        images: the image files that the annotations name.
    """

    report: CheckReport
    manifest: Manifest | None
    entries: dict[str, FileEntry]
    images: dict[str, _Image]


def verify_dataset(
    data: Path, *, workers: int | None = None, advance: Callable[[int], None] = lambda _: None
) -> tuple[CheckReport, Manifest]:
    """Check a data set completely, and write the outcome into its manifest.

    Beyond what is looked at before training, every image is decoded, and every file's hash is
    compared with the manifest. It is marked as verified if nothing is wrong, and the mark is taken
    away otherwise. A data set without a manifest gets one, if nothing is wrong.

    Args:
        data: the data set folder.
        workers: number of processes; None for one per core.
        advance: told how many more files are done, of `len(dataset_files(data))`.

    Raises:
        DatasetError: the folder is no data set, or its manifest is damaged.
    """
    inspection = inspect_dataset(data, workers=workers, advance=advance)
    return inspection.report, conclude(data, inspection)


def inspect_dataset(
    data: Path, *, workers: int | None = None, advance: Callable[[int], None] = lambda _: None
) -> Inspection:
    """Look at a data set as `verify_dataset` does, and write nothing."""
    split_names = splits(data)
    manifest = read_manifest(data)
    paths = dataset_files(data)
    report = check_dataset(data, split_names, use_manifest=False)
    inspection = Inspection(report, manifest, {}, _images(report, split_names))
    broken = _broken(report)
    inspect_files(data, inspection, paths, workers=workers, advance=advance)
    if manifest is not None:
        _add_differences(inspection, manifest.files.keys() - inspection.entries.keys(), broken)
    return inspection


def inspect_files(
    data: Path,
    inspection: Inspection,
    paths: Sequence[str],
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Decode and hash files, and add what is wrong with them to an inspection."""
    problems, images = inspection.report.problems, inspection.images
    broken = _broken(inspection.report)
    with ProcessPoolExecutor(workers or usable_cores()) as pool:
        tasks = ([(path, images.get(path)) for path in chunk] for chunk in chunks(paths, 64))
        for some in pool.map(partial(_inspect, data), tasks):
            for path, entry, failure in some:
                inspection.entries[path] = entry
                if failure is not None and (failure.split, failure.image_id) not in broken:
                    problems.append(failure)
            advance(len(some))
    _add_differences(inspection, paths, broken)


def conclude(data: Path, inspection: Inspection) -> Manifest:
    """Write the outcome of an inspection into the data set's manifest, and return it."""
    report = inspection.report
    manifest = inspection.manifest or Manifest(data.resolve().name, inspection.entries)
    if not report.problems:
        images = {name: len(report.annotations[name].image_ids) for name in report.split_names}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = replace(manifest, verified={"at": at, "images": images})
        write_manifest(data, manifest)
    elif manifest.verified is not None:
        manifest = replace(manifest, verified=None)
        write_manifest(data, manifest)
    return manifest


def _images(report: CheckReport, split_names: Sequence[str]) -> dict[str, _Image]:
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
            path = f"{name}/{file_name}"
            images[path] = _Image(path, name, image_id, (size[0], size[1]))
    return images


def _inspect(
    data: Path, files: list[tuple[str, _Image | None]]
) -> list[tuple[str, FileEntry, Problem | None]]:
    return [_inspect_one(data, path, image) for path, image in files]


def _inspect_one(
    data: Path, path: str, image: _Image | None
) -> tuple[str, FileEntry, Problem | None]:
    if image is None:
        return path, hash_file(data / path), None
    content = (data / path).read_bytes()
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            picture.load()
            failure = size_failure(picture.size, image.size)
    except UnidentifiedImageError:
        failure = ProblemKind.NOT_JPEG, "its headers cannot be read"
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to refuse damaged data.
        failure = ProblemKind.DECODE, str(error)
    if failure is None:
        return path, entry, None
    return path, entry, Problem(failure[0], path, failure[1], image.split, image.image_id)


def _broken(report: CheckReport) -> set[tuple[str, int | None]]:
    """Return the images that something is known to be wrong with: it is not told twice."""
    return {(problem.split, problem.image_id) for problem in report.problems}


def _add_differences(
    inspection: Inspection, paths: Iterable[str], broken: Collection[tuple[str, int | None]]
) -> None:
    """Hold files against the manifest; those known to be broken are not told again."""
    manifest, entries, report = inspection.manifest, inspection.entries, inspection.report
    if manifest is None:
        return
    for path in sorted(paths):
        if entries.get(path) == manifest.files.get(path):
            continue
        if path not in entries:
            detail = "missing"
        elif path not in manifest.files:
            detail = "not in the manifest"
        else:
            detail = "size or hash is not the manifest's"
        image = inspection.images.get(path)
        split = next((name for name in report.split_names if name in path), report.split_names[0])
        image_id = image.image_id if image else None
        if image_id is None or (split, image_id) not in broken:
            report.problems.append(Problem(ProblemKind.CHANGED, path, detail, split, image_id))
