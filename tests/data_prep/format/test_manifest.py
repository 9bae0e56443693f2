import hashlib
import json
import shutil
from pathlib import Path

import pytest

from cocodata import CheckReport, DatasetError, ProblemKind
from cocodata.checks.verify import record_result, verify_dataset
from cocodata.format.manifest import (
    build_manifest,
    compare_with_manifest,
    read_manifest,
    write_manifest,
)

FIRST = "train2017/000000001000.jpg"


def _verify(data: Path, workers: int | None = None) -> CheckReport:
    verification = verify_dataset(data, workers=workers)
    record_result(data, verification)
    return verification.report


def test_manifest_holds_size_and_hash_of_every_file(data: Path) -> None:
    (data / "notes.txt").write_text("not part of the data set")
    manifest = build_manifest(data, "shapes", workers=2)
    expected = sorted(
        path.relative_to(data).as_posix()
        for folder in ("annotations", "train2017", "val2017")
        for path in (data / folder).iterdir()
    )
    assert list(manifest.files) == expected
    lines = []
    for path, entry in manifest.files.items():
        content = (data / path).read_bytes()
        assert entry.size == len(content)
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        lines.append(f"{path}\0{entry.sha256}\n")
    assert manifest.version == hashlib.sha256("".join(lines).encode()).hexdigest()
    write_manifest(data, manifest)
    assert read_manifest(data) == manifest
    assert compare_with_manifest(data, manifest, threads=2) == []
    assert not list(data.glob(".manifest*"))


def test_version_depends_only_on_content(data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    version = build_manifest(data, "a").version
    assert build_manifest(moved, "b").version == version
    (moved / FIRST).rename(moved / "train2017" / "renamed.jpg")
    assert build_manifest(moved, "b").version != version


def test_damaged_manifest_is_refused(data: Path) -> None:
    assert read_manifest(data) is None
    path = data / "manifest.json"
    for content in ("{", "[]", '{"name": "x"}'):
        path.write_text(content)
        with pytest.raises(DatasetError, match=r"not a manifest .*Write a new one with"):
            read_manifest(data)
    write_manifest(data, build_manifest(data, "shapes"))
    tree = json.loads(path.read_text())
    tree["files"][FIRST]["size"] += 1
    del tree["files"]["train2017/000000001007.jpg"]
    path.write_text(json.dumps(tree))
    with pytest.raises(DatasetError, match="does not match the files it lists"):
        read_manifest(data)


def test_verification_marks_the_manifest(data: Path) -> None:
    report = _verify(data, workers=2)
    assert report.problems == []
    manifest = read_manifest(data)
    assert manifest is not None
    assert manifest.verified is not None
    assert manifest.verified["images"] == {"train2017": 220, "val2017": 110}


def test_verification_finds_damage_that_only_decoding_shows(data: Path) -> None:
    _verify(data)
    path = data / FIRST
    content = path.read_bytes()
    scan = content.index(b"\xff\xda")
    # The file keeps its size, headers and end; the scan's component selector becomes nonsense.
    path.write_bytes(content[: scan + 5] + b"\x77" + content[scan + 6 :])
    report = _verify(data)
    found = {(problem.kind, problem.where) for problem in report.problems}
    assert (ProblemKind.DECODE, FIRST) in found
    assert (ProblemKind.CHANGED, FIRST) in found
    manifest = read_manifest(data)
    assert manifest is not None
    assert manifest.verified is None
    path.write_bytes(content)
    report = _verify(data)
    assert report.problems == []


def test_damaged_data_set_gets_no_manifest(data: Path) -> None:
    (data / FIRST).write_bytes(b"")
    report = _verify(data)
    assert [problem.kind for problem in report.problems] == [ProblemKind.TRUNCATED]
    assert read_manifest(data) is None


def test_verification_compares_every_hash(data: Path) -> None:
    _verify(data)
    path = data / FIRST
    path.write_bytes(path.read_bytes() + b"more")
    (data / "train2017" / "added.jpg").write_bytes(b"?")
    report = _verify(data)
    assert sorted((problem.where, problem.detail) for problem in report.problems) == [
        (FIRST, "size or hash differs from the manifest"),
        ("train2017/added.jpg", "not in the manifest"),
    ]
