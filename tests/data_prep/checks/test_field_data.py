"""Data sets as people bring them: what the check accepts, verify and training accept too."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cocodata import DatasetError, ProblemKind, check_dataset, load_split, load_validated
from cocodata.checks.verify import record_result, verify_dataset
from cocodata.format import images
from cocodata.format.images import ImageTooLargeError, check_decoding, check_header
from cocodata.format.manifest import require_writable
from cocodata.text import printable

EditAnnotations = Callable[[Callable[[dict[str, Any]], None]], None]
NAMES = ("train2017", "val2017")
SIZES = {"train2017": [(40, 30), (20, 50)], "val2017": [(32, 32)]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two and one images with a box each, without a manifest."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    for split, sizes in SIZES.items():
        (folder / split).mkdir()
        tree: dict[str, Any] = {"categories": [{"id": 1, "name": "disc"}]}
        tree |= {"images": [], "annotations": []}
        for number, size in enumerate(sizes, start=1):
            Image.new("RGB", size, (90, 120, 60)).save(folder / split / f"{number}.jpg")
            image = {"id": number, "file_name": f"{number}.jpg"}
            tree["images"].append({**image, "width": size[0], "height": size[1]})
            box = {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 3, 9, 8]}
            tree["annotations"].append(box)
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(tree))
    return folder


def _accepted_everywhere(data: Path, note: str) -> None:
    """Check, load, verify, and load again with the manifest; each tells the note once."""
    loaded = load_validated(data, NAMES)
    assert [each for each in loaded.report.notes if note in each] == loaded.report.notes
    assert len(loaded.report.notes) == 1
    verification = verify_dataset(data, workers=1)
    assert verification.report.problems == []
    assert all(image.path in verification.entries for image in verification.images.values())
    record_result(data, verification)
    again = load_validated(data, NAMES)
    assert again.report.used_manifest
    assert again.report.notes == loaded.report.notes
    for split, same in zip(loaded.splits, again.splits, strict=True):
        unchecked = load_split(data, split.name)
        assert split.file_names == same.file_names == unchecked.file_names
        np.testing.assert_array_equal(split.image_ids, unchecked.image_ids)
        np.testing.assert_array_equal(split.sizes, unchecked.sizes)
        np.testing.assert_array_equal(split.boxes, unchecked.boxes)


def _text_ids(tree: dict[str, Any]) -> None:
    for entry in tree["images"]:
        entry["id"] = f"seq_{entry['id']}"
    for entry in tree["annotations"]:
        entry["image_id"] = f"seq_{entry['image_id']}"


def _large_ids(tree: dict[str, Any]) -> None:
    for entry in tree["images"]:
        entry["id"] += 2**63
    for entry in tree["annotations"]:
        entry.update(id=entry["id"] + 2**63, image_id=entry["image_id"] + 2**63)


def _no_sizes(tree: dict[str, Any]) -> None:
    for entry in tree["images"]:
        del entry["width"], entry["height"]


def _backslashes(tree: dict[str, Any]) -> None:
    for entry in tree["images"]:
        entry["file_name"] = f"images\\{entry['file_name']}"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (_text_ids, "train2017: image ids that are text, such as 'seq_1'"),
        (_large_ids, "train2017: image ids that are more than 63 bits"),
        (_no_sizes, "train2017: 2 images without width and height"),
        (_backslashes, "train2017: 2 file names adapted"),
        (
            lambda t: t["annotations"][0].update(bbox=[-20, 3, 30, 9]),
            "train2017: 1 box over the edge of the image, clipped to it",
        ),
        (lambda t: t["annotations"][0].update(area=""), "train2017: 1 area unusable"),
    ],
)
def test_what_the_check_accepts_is_accepted_everywhere(
    data: Path, edit_train: EditAnnotations, change: Callable[[dict[str, Any]], None], note: str
) -> None:
    edit_train(change)
    _accepted_everywhere(data, note)


def test_missing_file_of_an_adapted_name_is_missed(data: Path, edit_train: EditAnnotations) -> None:
    edit_train(_backslashes)
    record_result(data, verify_dataset(data, workers=1))
    (data / "train2017" / "2.jpg").unlink()
    report = check_dataset(data, NAMES)
    assert report.used_manifest
    assert [(p.kind, p.image_id) for p in report.problems] == [(ProblemKind.MISSING, 2)]


@pytest.mark.parametrize("bbox", [[], None, [None, 1, 2, 3]])
def test_empty_box_is_a_problem_of_its_image(
    data: Path, edit_train: EditAnnotations, bbox: Any
) -> None:
    edit_train(lambda tree: tree["annotations"][0].update(bbox=bbox))
    report = check_dataset(data, NAMES)
    assert [str(p) for p in report.problems] == [
        "train2017/1.jpg, annotation 1: its bbox is empty or not four numbers"
    ]


def test_file_that_is_listed_twice_is_a_problem(data: Path, edit_train: EditAnnotations) -> None:
    edit_train(lambda tree: tree["images"][1].update(file_name="1.jpg", width=40, height=30))
    report = check_dataset(data, NAMES)
    assert {(p.kind, p.image_id) for p in report.problems} == {
        (ProblemKind.IDS, 1),
        (ProblemKind.IDS, 2),
    }
    assert "the image 1 is one of 2 with this file" in report.message()


def test_address_without_a_file_is_explained(data: Path, edit_train: EditAnnotations) -> None:
    edit_train(lambda tree: tree["images"][0].update(file_name="http://example.org/9.jpg"))
    message = check_dataset(data, NAMES).message()
    assert "address instead of a file name (1); download the image into" in message


def test_name_that_is_not_utf8_is_refused_by_all(data: Path, edit_train: EditAnnotations) -> None:
    (data / "train2017/1.jpg").rename(data / "train2017" / os.fsdecode(b"caf\xe9.jpg"))
    edit_train(lambda tree: tree["images"][0].update(file_name="caf\xe9.jpg"))
    message = check_dataset(data, NAMES).message()
    assert message.encode().endswith(b"  train2017/caf\\xe9.jpg")
    assert "file name that is not UTF-8 (1); rename" in message
    for command in ("check", "manifest", "verify"):
        done = _run(command, data)
        assert done.returncode == 1
        assert "caf\\xe9.jpg" in done.stderr
        assert "Traceback" not in done.stderr


def test_printable_names() -> None:
    assert printable("caf\udce9\ud83d \xe9") == "caf\\xe9\\ud83d \xe9"


def test_largest_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS > 20000 * 10000
    path = tmp_path / "x.jpg"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    check_header(path, (40, 30))
    check_decoding(path, (40, 30))
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    for check in (check_header, check_decoding):
        with pytest.raises(ImageTooLargeError, match="40 x 30 pixels; up to"):
            check(path, (40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses more than twice as many.
    with pytest.raises(ImageTooLargeError):
        check_decoding(path, (40, 30))


def test_image_of_200_megapixels_is_verified(data: Path, edit_train: EditAnnotations) -> None:
    size = (20000, 10000)
    Image.new("L", size).save(data / "train2017/1.jpg", quality=10)
    edit_train(lambda tree: tree["images"][0].update(width=size[0], height=size[1]))
    assert check_dataset(data, NAMES).problems == []
    assert verify_dataset(data, workers=1).report.problems == []


def test_image_too_large_is_reported_by_the_check(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1100)
    message = check_dataset(data, NAMES).message()
    assert "image too large (1); cut the image into tiles" in message


def _run(command: str, data: Path, *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-m", "cocodata", command, str(data)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_folder_that_can_only_be_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(data)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DatasetError, match=r"can only be read, and manifest\.json has to be"):
        require_writable(data)


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_folder_of_another_user(data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    above = [folder for folder in data.parents if folder.is_relative_to(base.parent)]
    for path in (*above, data, *data.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    done = _run("verify", data, *nobody)
    assert "can only be read, and manifest.json has to be written" in done.stderr
    assert done.returncode == 1
    assert _run("check", data, *nobody).returncode == 0
