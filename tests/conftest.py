"""What every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers that only the tests' own targets ask for."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; `make gpu-check`")
    config.addinivalue_line(
        "markers", "hosts: takes minutes on hosts that the test makes; `make test-sync`"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU if torch finds none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch  # here, since it takes seconds and not all tests need it

    if not torch.cuda.is_available():
        reason = "torch.cuda.is_available() is False: no GPU here"
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _environment_unchanged() -> Iterator[None]:
    """Fail a test that leaves environment variables behind: they decide how later tests train."""
    before = {**os.environ}
    yield
    after = {**os.environ}
    os.environ.clear()
    os.environ.update(before)
    # Set by pytest for each phase, and by torch when its compiler is imported.
    libraries = ("PYTEST_", "TORCHINDUCTOR_", "TRITON_")
    changed = {name for name, _ in {*before.items()} ^ {*after.items()}}
    assert not {name for name in changed if not name.startswith(libraries)}


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
