"""From archives to a data set on the command line, and repairing it."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_server import ANNOTATIONS, IMAGES, FaultyServer, archive_on, content_of

from cocodata.checks.repair import sources

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(server: FaultyServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cocodata", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "data-prep"), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    return command


def test_from_archives_to_a_verified_data_set_and_repaired(
    server: FaultyServer,
    generated: Path,
    tmp_path: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    out = tmp_path / "coco"
    archives = [
        f"--archive={each.url}#{each.digest}"
        for each in (
            archive_on(server, ANNOTATIONS),
            archive_on(server),
            archive_on(server, "/zips/train2017.zip"),
        )
    ]
    done = run("download", out, *archives)
    assert done.returncode == 0, done.stderr
    assert "332 files unpacked; splits train2017 and val2017" in done.stdout
    assert not (out / "annotations" / "captions_val2017.json").exists()
    first = next((generated / "train2017").iterdir()).name
    assert (out / "train2017" / first).read_bytes() == (
        generated / "train2017" / first
    ).read_bytes()
    again = run("download", out, *archives)
    assert "0 files unpacked" in again.stdout
    assert run("verify", out).returncode == 0

    damaged = _damage(out)
    found = run("verify", out)
    assert found.returncode == 1
    for path in damaged:
        assert path in found.stderr
    repaired = run("verify", out, "--repair")
    assert repaired.returncode == 0, repaired.stderr
    restored = [line.split(": restored")[0] for line in repaired.stdout.splitlines()[:-1]]
    assert sorted(restored) == sorted(damaged)
    for path in damaged:
        assert (out / path).read_bytes() == (generated / path).read_bytes()
    assert "verified, 332 files" in repaired.stdout

    # Without the archives, only what is damaged is fetched out of those on the server.
    for file in (out / "archives").glob("*.zip"):
        file.unlink()
    assert len(sources(out / "archives")) == 3
    damaged = _damage(out)
    server.behaviour.sent = 0
    repaired = run("verify", out, "--repair")
    assert repaired.returncode == 0, repaired.stderr
    for path in damaged:
        assert (out / path).read_bytes() == (generated / path).read_bytes()
    needed = sum((generated / path).stat().st_size for path in damaged)
    assert server.behaviour.sent < needed + 1_500_000


def _damage(out: Path) -> list[str]:
    images = sorted((out / "train2017").iterdir())
    images[3].unlink()
    images[5].write_bytes(images[5].read_bytes()[:1000])
    whole = images[7].read_bytes()
    images[7].write_bytes(whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:])
    annotations = out / "annotations" / "instances_val2017.json"
    annotations.write_bytes(annotations.read_bytes()[:-10])
    return [f"train2017/{images[i].name}" for i in (3, 5, 7)] + [
        "annotations/instances_val2017.json"
    ]


def test_repair_does_not_replace_a_file_with_another_version(
    server: FaultyServer,
    data: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    image, other = sorted((data / "val2017").iterdir())[:2]
    original = image.read_bytes()
    image.write_bytes(other.read_bytes())
    assert run("manifest", data).returncode == 0
    image.write_bytes(original[:500])
    done = run("verify", data, "--repair", f"--archive={server.url}{IMAGES}")
    assert done.returncode == 1
    assert image.read_bytes() == original[:500]
    image.write_bytes(original[:500])
    done = run("verify", data, "--repair")
    assert "There is nothing to repair from" in done.stderr


def test_archives_with_paths_outside_their_folder_are_refused(
    tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "coco" / "archives"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    done = run("download", tmp_path / "coco", "--archive", "http://coco.invalid/a.zip")
    assert done.returncode == 1
    assert "a path outside it" in done.stderr
    assert not (tmp_path / "outside.txt").exists()


def test_damage_within_an_archive_is_reported(
    server: FaultyServer,
    tmp_path: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder = tmp_path / "coco" / "archives"
    folder.mkdir(parents=True)
    content = bytearray(content_of(server))
    content[len(content) // 3] ^= 0xFF
    (folder / "val2017.zip").write_bytes(content)
    done = run("download", tmp_path / "coco", "--archive", server.url + IMAGES)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "coco" / "val2017").exists()
