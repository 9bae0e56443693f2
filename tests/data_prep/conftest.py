"""A small generated data set, and copies of it to damage."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty_server import ANNOTATIONS, IMAGES, FaultyServer

from cocodata.mini.mini import generate_mini_coco

EditAnnotations = Callable[[Callable[[dict[str, Any]], None]], None]


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini COCO of 220 + 110 images; read-only."""
    folder = tmp_path_factory.mktemp("generated") / "mini"
    generate_mini_coco(folder, num_train=220, num_val=110)
    return folder


@pytest.fixture
def data(generated: Path, tmp_path: Path) -> Path:
    """A copy to damage, without a manifest, so that every check is a full one."""
    folder = tmp_path / "data"
    shutil.copytree(generated, folder)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def edit_train(data: Path) -> EditAnnotations:
    """Changes the training annotations of `data` with a function."""
    return partial(_edit, data / "annotations" / "instances_train2017.json")


@pytest.fixture
def edit_val(data: Path) -> EditAnnotations:
    """Changes the validation annotations of `data` with a function."""
    return partial(_edit, data / "annotations" / "instances_val2017.json")


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


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
