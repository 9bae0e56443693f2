"""Packed data sets, and hosts to synchronize them to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sync_cluster import Cluster, Packed, reason_to_skip

from bench.network_lab import Lab
from cocodata.mini.mini import generate_mini_coco
from cocodata.sync.pack import pack_dataset


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    """Two packed versions of a small data set; skips where hosts cannot be simulated."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    base = tmp_path_factory.mktemp("versions")
    made = []
    for seed in (1, 2):
        data = base / f"data{seed}"
        generate_mini_coco(data, num_train=90, num_val=30, seed=seed)
        folder = base / f"packed{seed}"
        metadata, _ = pack_dataset(data, folder, name="mini", piece_length=16384)
        made.append(Packed(folder, metadata, data))
    return made[0], made[1]


@pytest.fixture
def cluster(versions: tuple[Packed, Packed], tmp_path: Path) -> Iterator[Cluster]:
    """A control machine and three hosts."""
    with Lab(tmp_path / "lab", 4, ssh=True) as lab:
        yield Cluster(lab)
