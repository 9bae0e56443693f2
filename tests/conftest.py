"""What every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def coco_tiny() -> Path:
    """A folder of real images in COCO's layout, named by the environment variable COCO_TINY."""
    folder = os.environ.get("COCO_TINY")
    if not folder:
        pytest.skip("COCO_TINY names no folder of real images in COCO's layout")
    return Path(folder)
