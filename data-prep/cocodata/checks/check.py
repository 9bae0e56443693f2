"""The check of a data set before training starts.

What counts as a problem is decided so that COCO 2017 itself has none:

- A box may reach over the edge of its image: by up to two pixels that is rounding, beyond it the
  reader has clipped the box. A box completely outside is a problem.
- A box less than a pixel wide or high cannot be learnt and is left out of training, as in the
  published trainings; a note says so. A box without any area is a problem, except for the two that
  train2017 is known to have.
- Grayscale and CMYK images are valid JPEG files, and bytes after the end marker are harmless.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cocodata.checks.problems import CheckReport, Problem, ProblemKind, image_problem
from cocodata.errors import DatasetError
from cocodata.format.annotations import Annotations, read_annotations
from cocodata.format.categories import Categories
from cocodata.format.image_names import stays_inside
from cocodata.format.images import ImageError, check_header
from cocodata.format.layouts import DatasetFolder
from cocodata.format.manifest import Manifest, compare_with_manifest, read_manifest, usable_cores
from cocodata.format.split import Split, build_split
from cocodata.text import count, is_utf8, printable

MAX_UNUSABLE = 0.01
"""The largest part of a split that may be left out."""

# Kinds of problems that leaving images out does not help.
_OBSTACLES = (ProblemKind.ANNOTATIONS, ProblemKind.EMPTY, ProblemKind.CLASSES)

# (annotation id, image id) of the boxes of height 0 in COCO's own instances_train2017.json.
_KNOWN_WITHOUT_AREA = {(918, 200365), (2206849, 550395)}


@dataclass(frozen=True)
class ValidatedData:
    """Splits that can be trained on.

    Attributes:
        splits: without the images that cannot be used, in the order requested, and all with the
            labels that the first one gives to its classes.
        left_out: how many images were left out of each split, by name.
        report: what the check found.
    """

    splits: tuple[Split, ...]
    left_out: dict[str, int]
    report: CheckReport


def load_validated(
    data: Path, split_names: Sequence[str], *, strict: bool = True, threads: int | None = None
) -> ValidatedData:
    """Check the splits of a data set, and read those that can be trained on.

    Args:
        data: the data set folder.
        split_names: splits to check and read.
        strict: whether any problem is an error; if not, unusable images and boxes of unknown
            images are left out.
        threads: threads that check files; None for a number that depends on the cores.

    Raises:
        DatasetError: there are problems and `strict` is set, or leaving images out does not help
            (annotation file unusable, empty split, other classes than in the first split), or more
            than 1 % of a split would be left out.
    """
    report = check_dataset(data, split_names, threads=threads)
    annotations = dict(report.annotations)
    obstacles = []
    for name in split_names:
        of_split = [problem for problem in report.problems if problem.split == name]
        if any(p.kind in _OBSTACLES for p in of_split):
            obstacles.append(f"{name} cannot be used at all")
            continue
        if name not in annotations:
            annotations[name] = _read(data, name, report.notes)
        for bad, total, what in (
            (len(report.unusable(name)), len(annotations[name].image_ids), "image"),
            (sum(p.image_id is None for p in of_split), len(annotations[name].boxes), "box"),
        ):
            if bad > MAX_UNUSABLE * total:
                obstacles.append(
                    f"{count(bad, what)} of {total} in {name} ({bad / total:.1%}) cannot be used"
                )
    if report.problems and (strict or obstacles):
        if obstacles:
            ending = f"{'; '.join(obstacles)}: more than 1 % is an error even with strict: false"
        else:
            num_unusable = sum(len(report.unusable(name)) for name in split_names)
            ending = f"strict: false trains without the {count(num_unusable, 'image')} affected"
        raise DatasetError(f"{report.message()}\n{ending}")

    splits: list[Split] = []
    left_out = {}
    for name in split_names:
        split = build_split(data, name, annotations[name])
        unusable = report.unusable(name)
        left_out[name] = len(unusable)
        if len(unusable):
            split = split.select(~np.isin(split.image_ids, unusable))
        if splits:
            split = share_labels(splits[0], split)
            if report.used_manifest:  # The check did not compare the classes.
                _note_matching(report, name, split.categories)
        splits.append(split)
    return ValidatedData(tuple(splits), left_out, report)


def check_dataset(
    data: Path,
    split_names: Sequence[str],
    *,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    use_manifest: bool = True,
) -> CheckReport:
    """Check the splits of a data set without decoding images.

    A data set with a verified manifest is only compared with it.

    Args:
        data: the data set folder.
        split_names: splits to check.
        threads: threads that check files; None for a number that depends on the cores.
        advance: called with how many more images are done.
        use_manifest: whether to trust a verified manifest.

    Raises:
        DatasetError: the manifest is damaged.
    """
    threads = threads or min(32, 4 * usable_cores())
    manifest = read_manifest(data) if use_manifest else None
    if manifest is not None and manifest.verified is not None:
        return _compare(data, split_names, manifest, threads)
    report = CheckReport(data, tuple(split_names), [], [], False, {})
    for name in split_names:
        _check_split(report, name, threads, advance)
    _compare_classes(report)
    return report


def share_labels(first: Split, other: Split) -> Split:
    """Return the other split with the labels that the first one gives to the same classes.

    Raises:
        DatasetError: the classes of the two cannot be matched by name.
    """
    return other.labelled_as(first.categories, str(first.annotation_file))


def _compare_classes(report: CheckReport) -> None:
    """Compare the classes of the splits, which need not have the same ids for the same names."""
    first, *others = [report.annotations.get(name) for name in report.split_names]
    for name, other in zip(report.split_names[1:], others, strict=True):
        if first is None or other is None:
            continue
        own, theirs = map(DatasetFolder.annotation_path, (name, report.split_names[0]))
        try:
            mapped = other.categories.labelled_as(first.categories, own="it", theirs=theirs)
        except DatasetError as error:
            report.problems.append(Problem(ProblemKind.CLASSES, own, str(error), name))
            continue
        _note_matching(report, name, mapped)


def _note_matching(report: CheckReport, name: str, categories: Categories) -> None:
    if categories.trained is not None:
        report.notes.append(
            f"{name}: classes ({len(categories)}) are matched by name to those of "
            f"{report.split_names[0]} ({len(categories.of_detector)}): ids or number differ"
        )


def _compare(
    data: Path, split_names: Sequence[str], manifest: Manifest, threads: int
) -> CheckReport:
    report = CheckReport(data, tuple(split_names), [], [], True, {})
    differences = {
        found.path: found.detail for found in compare_with_manifest(data, manifest, threads=threads)
    }
    for name in split_names:
        own_file = DatasetFolder.annotation_path(name)
        if own_file not in manifest.files:
            differences[own_file] = "not in the manifest"
        if own_file in differences:
            report.problems.append(
                Problem(ProblemKind.ANNOTATIONS, own_file, differences[own_file], name)
            )
            continue
        affected = {
            path: (file_name, detail)
            for path, detail in differences.items()
            if (file_name := DatasetFolder.file_name_of(name, path)) is not None
        }
        if not affected:
            continue
        listed = {DatasetFolder.file_name_of(name, path) or "" for path in manifest.files}
        annotations = _read(data, name, report.notes, listed)
        report.annotations[name] = annotations
        ids = dict(zip(annotations.file_names, annotations.image_ids.tolist(), strict=True))
        for path, (file_name, detail) in affected.items():
            image_id = ids.get(file_name)
            if image_id is not None:  # A file that no annotation names is not used in training.
                kind = ProblemKind.MISSING if detail == "missing" else ProblemKind.CHANGED
                report.problems.append(
                    Problem(kind, path, "" if detail == "missing" else detail, name, image_id)
                )
    return report


def _read(
    data: Path, name: str, notes: list[str], listed: Collection[str] | None = None
) -> Annotations:
    folder = DatasetFolder(data)
    annotations = read_annotations(
        folder.annotation_file(name), folder.image_folder(name), listed=listed
    )
    notes += (f"{name}: {note}" for note in annotations.notes)
    return annotations


def _check_split(
    report: CheckReport, name: str, threads: int, advance: Callable[[int], None]
) -> None:
    own_file = DatasetFolder.annotation_path(name)
    folder = DatasetFolder(report.data)
    try:
        annotations = _read(report.data, name, report.notes)
    except DatasetError as error:
        report.problems.append(Problem(ProblemKind.ANNOTATIONS, own_file, str(error), name))
        return
    report.annotations[name] = annotations
    if len(annotations.image_ids) == 0:
        report.problems.append(Problem(ProblemKind.EMPTY, own_file, "it lists no images", name))
        return
    if not len(build_split(report.data, name, annotations).boxes):
        report.problems.append(
            Problem(ProblemKind.EMPTY, own_file, "it has no box to train on", name)
        )
    report.problems.extend(_id_problems(name, own_file, annotations))
    report.problems.extend(_box_problems(name, annotations, report.notes))
    images = folder.image_folder(name)
    if not images.is_dir():
        where = folder.image_folder_path(name)
        report.problems.append(
            Problem(ProblemKind.EMPTY, where, "the image folder is missing", name)
        )
        return
    report.problems.extend(_file_problems(images, name, annotations, threads, advance))


def _id_problems(name: str, own_file: str, annotations: Annotations) -> Iterable[Problem]:
    ids, counts = np.unique(annotations.image_ids, return_counts=True)
    originals = annotations.original_ids
    for image_id in ids[counts > 1].tolist():
        detail = f"several images have the id {originals.get(image_id, image_id)}"
        yield Problem(ProblemKind.IDS, own_file, detail, name, image_id)
    yield from _shared_files(name, annotations)
    orphans = np.flatnonzero(~np.isin(annotations.box_image_ids, ids))
    for row in orphans.tolist():
        image_id = int(annotations.box_image_ids[row])
        yield Problem(
            ProblemKind.IDS,
            f"{own_file}, annotation {annotations.box_ids[row]}",
            f"no image has its image_id {originals.get(image_id, image_id)}",
            name,
        )


def _shared_files(name: str, annotations: Annotations) -> Iterable[Problem]:
    """Yield the images that are the same file as another one: each has only part of its boxes."""
    if len(set(annotations.file_names)) == len(annotations.file_names):
        return
    images = set(zip(annotations.file_names, annotations.image_ids.tolist(), strict=True))
    uses = Counter(file_name for file_name, _ in images)
    for file_name, image_id in sorted(images):
        if uses[file_name] > 1:
            path = printable(DatasetFolder.image_path(name, file_name))
            shown = annotations.original_ids.get(image_id, image_id)
            detail = f"the image {shown} is one of {uses[file_name]} with this file"
            yield Problem(ProblemKind.IDS, path, detail, name, image_id)


def _box_problems(name: str, annotations: Annotations, notes: list[str]) -> Iterable[Problem]:
    ids, order = np.unique(annotations.image_ids, return_index=True)
    known_image = np.isin(annotations.box_image_ids, ids)
    if not len(ids):
        return
    owner = np.searchsorted(ids, annotations.box_image_ids).clip(max=len(ids) - 1)
    size = annotations.sizes[order][owner].astype(np.float64)
    low, extent = annotations.boxes[:, :2], annotations.boxes[:, 2:]
    high = low + extent
    with np.errstate(invalid="ignore"):
        without_area = ~(extent > 0).all(axis=1)
        outside = ((high <= 0) | (low >= size)).any(axis=1) & (size[:, 0] > 0)
        tiny = ~without_area & (extent < 1).any(axis=1)
    not_finite = np.asarray(~np.isfinite(annotations.boxes).all(axis=1))
    is_known = np.zeros(len(owner), np.bool_)
    for row in np.flatnonzero(without_area & (extent >= 0).all(axis=1)).tolist():
        pair = (annotations.box_ids[row], int(annotations.box_image_ids[row]))
        is_known[row] = pair in _KNOWN_WITHOUT_AREA
    without_area &= ~is_known
    left_out = int((tiny | is_known).sum())
    if left_out:
        notes.append(
            f"{name}: {count(left_out, 'box')} less than a pixel wide or high, not used in training"
        )

    unknown = ~annotations.categories.known(annotations.box_category_ids)
    for row in np.flatnonzero(
        known_image & (without_area | outside | not_finite | unknown)
    ).tolist():
        file_name = annotations.file_names[int(order[owner[row]])]
        path = printable(DatasetFolder.image_path(name, file_name))
        where = f"{path}, annotation {annotations.box_ids[row]}"
        image_id = int(annotations.box_image_ids[row])
        box = [round(value, 2) for value in annotations.boxes[row].tolist()]
        width, height = size[row].astype(int).tolist()
        if not_finite[row]:
            detail = "its bbox is empty or not four numbers"
            yield Problem(ProblemKind.BOX, where, detail, name, image_id)
        elif without_area[row]:
            yield Problem(ProblemKind.BOX, where, f"bbox {box} has no area", name, image_id)
        elif outside[row]:
            detail = f"bbox {box} lies outside the image, which is {width} x {height}"
            yield Problem(ProblemKind.BOX, where, detail, name, image_id)
        if unknown[row]:
            detail = f"category_id {annotations.box_category_ids[row]} is not in the file's list"
            yield Problem(ProblemKind.CATEGORY, where, detail, name, image_id)


def _file_problems(
    folder: Path,
    name: str,
    annotations: Annotations,
    threads: int,
    advance: Callable[[int], None],
) -> Iterable[Problem]:
    def check(images: range) -> list[Problem]:
        found = []
        for index in images:
            file_name = annotations.file_names[index]
            path = printable(DatasetFolder.image_path(name, file_name))
            image_id = int(annotations.image_ids[index])
            if (problem := _name_problem(file_name)) is not None:
                found.append(Problem(problem[0], path, problem[1], name, image_id))
                continue
            width, height = annotations.sizes[index].tolist()
            try:
                # Twice as fast as joining Path objects.
                check_header(os.path.join(folder, file_name), (width, height))  # noqa: PTH118
            except ImageError as error:
                found.append(image_problem(error, path, name, image_id))
        advance(len(images))
        return found

    total = len(annotations.file_names)
    with ThreadPoolExecutor(threads) as pool:
        ranges = [range(start, min(start + 256, total)) for start in range(0, total, 256)]
        for found in pool.map(check, ranges):
            yield from found


def _name_problem(file_name: str) -> tuple[ProblemKind, str] | None:
    if "://" in file_name:
        return ProblemKind.ADDRESS, ""
    if not stays_inside(file_name) or "\0" in file_name:
        return ProblemKind.PATH, f"the annotations name it {file_name!r}"
    if not is_utf8(file_name):
        return ProblemKind.NAME, ""
    return None
