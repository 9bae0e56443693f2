"""What every test may use."""

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers that only the tests' own targets ask for."""
    config.addinivalue_line(
        "markers", "hosts: takes minutes on hosts that the test makes; `make test-sync`"
    )


@pytest.fixture(scope="session")
def coco_tiny() -> Path:
    """A folder of real images in COCO's layout, named by the environment variable COCO_TINY."""
    folder = os.environ.get("COCO_TINY")
    if not folder:
        pytest.skip("COCO_TINY names no folder of real images in COCO's layout")
    return Path(folder)


@pytest.fixture(scope="session")
def mini_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated data set: 48 training and 19 validation images."""
    from cocodata.mini.mini import generate_mini_coco

    folder = tmp_path_factory.mktemp("data") / "mini-coco"
    generate_mini_coco(folder, num_train=48, num_val=19)
    return folder
