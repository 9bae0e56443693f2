"""A small generated data set, and copies of it to damage."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import ANNOTATIONS, IMAGES, FaultyServer
from sync_cluster import Cluster, Packed, obstacle

from bench.network_lab import Lab
from cocodata.mini import generate_mini_coco
from cocodata.pack import pack_dataset

EditAnnotations = Callable[[Callable[[dict[str, Any]], None]], None]


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini COCO of 220 + 110 images; not to be changed."""
    folder = tmp_path_factory.mktemp("generated") / "mini"
    generate_mini_coco(folder, num_train=220, num_val=110)
    return folder


@pytest.fixture
def data(generated: Path, tmp_path: Path) -> Path:
    """A copy to damage, without a manifest: every look at it is a full one."""
    folder = tmp_path / "data"
    shutil.copytree(generated, folder)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def edit_train(data: Path) -> EditAnnotations:
    """Changes the training annotations of `data` with a function."""

    def edit(change: Callable[[dict[str, Any]], None]) -> None:
        path = data / "annotations" / "instances_train2017.json"
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))

    return edit


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    """Two packed versions of a small data set; skips where hosts cannot be played."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    base = tmp_path_factory.mktemp("versions")
    made = []
    for seed in (1, 2):
        data = base / f"data{seed}"
        generate_mini_coco(data, num_train=90, num_val=30, seed=seed)
        folder = base / f"packed{seed}"
        seal, _ = pack_dataset(data, folder, name="mini", piece_length=16384)
        made.append(Packed(folder, seal, data))
    return made[0], made[1]


@pytest.fixture
def cluster(versions: tuple[Packed, Packed], tmp_path: Path) -> Iterator[Cluster]:
    """A control machine and three hosts."""
    with Lab(tmp_path / "lab", 4, ssh=True) as lab:
        yield Cluster(lab)


@pytest.fixture(scope="session")
def published(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated data set as COCO publishes its own: three archives on a server."""
    folder = tmp_path_factory.mktemp("published")
    for name, members in (
        (ANNOTATIONS, "annotations"),
        (IMAGES, "val2017"),
        ("/zips/train2017.zip", "train2017"),
    ):
        path = folder / name.lstrip("/")
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((generated / members).iterdir()):
                archive.write(file, f"{members}/{file.name}")
            if members == "annotations":
                archive.writestr("annotations/captions_val2017.json", "{}")
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[FaultyServer]:
    with FaultyServer(published) as running:
        yield running
        running.shutdown()
