"""A trial's checkpoints in storage of Determined's own, opened by two ranks of one host."""

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from determined import core
from determined.common import storage
from determined.core._checkpoint import DummyCheckpointContext

from experiments.checkpoints.contents import (
    CheckpointError,
    CheckpointMissingError,
    StorageError,
    write_digests,
)
from experiments.checkpoints.stored import open_checkpoint
from experiments.training import cluster_run
from experiments.training.cluster_run import ClusterRun

RANKS = 2


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[Any]]:
    """Contexts of a trial's ranks, with the folder `storage` as its storage."""
    (tmp_path / "storage").mkdir()
    # Determined's own are fixed: other runs on this machine may have them.
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        publish, pull = (each.getsockname()[1] for each in sockets)

    def open_rank(rank: int) -> Any:
        distributed = core.DistributedContext(
            rank=rank,
            size=RANKS,
            local_rank=rank,
            local_size=RANKS,
            cross_rank=0,
            cross_size=1,
            chief_ip="127.0.0.1",
            pub_port=publish,
            pull_port=pull,
        )
        manager = storage.SharedFSStorageManager(str(tmp_path / "storage"))
        checkpoint = DummyCheckpointContext(distributed, manager)
        return SimpleNamespace(
            distributed=distributed, _core=SimpleNamespace(checkpoint=checkpoint)
        )

    with ThreadPoolExecutor(RANKS) as pool:
        contexts = list(pool.map(open_rank, range(RANKS)))
    yield contexts
    for context in contexts:
        context.distributed.close()


def on_all_ranks(ranks: list[Any], function: Any) -> list[Any]:
    def run(context: Any) -> Any:
        try:
            return function(context)
        except Exception as error:
            return error

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(run, ranks, timeout=60))


def save(tmp_path: Path, uuid: str) -> Path:
    folder = tmp_path / "storage" / uuid
    folder.mkdir()
    (folder / "numerics.json").write_text(json.dumps({"device": "cpu"}))
    write_digests(folder)
    return folder


def opened(context: Any) -> str:
    with open_checkpoint(context, "one") as folder:
        return folder.name


@pytest.mark.timeout(120)
def test_every_rank_learns_of_a_fault(ranks: list[Any], tmp_path: Path) -> None:
    assert [type(e) for e in on_all_ranks(ranks, opened)] == [CheckpointMissingError] * RANKS
    save(tmp_path, "one")
    assert on_all_ranks(ranks, opened) == ["one"] * RANKS
    shutil.rmtree(tmp_path / "storage")
    faults = on_all_ranks(ranks, opened)
    assert [type(e) for e in faults] == [StorageError] * RANKS
    assert "Storage directory does not exist" in str(faults[1])


def start(ranks: list[Any], saved: dict[str, int]) -> list[Any]:
    """Where each rank would start, if the master knows these checkpoints with their batches."""
    newest = max(saved, key=lambda uuid: saved[uuid])
    run = ClusterRun.__new__(ClusterRun)
    run._info = mock.Mock(latest_checkpoint=newest)
    run._info.trial._steps_completed = saved[newest]
    known = [SimpleNamespace(uuid=u, metadata={"steps_completed": b}) for u, b in saved.items()]
    with (
        mock.patch.object(cluster_run, "trial_session"),
        mock.patch.object(
            cluster_run.bindings,
            "get_GetTrialCheckpoints",
            return_value=SimpleNamespace(checkpoints=known),
        ),
    ):
        return on_all_ranks(ranks, run._newest_valid)


@pytest.mark.timeout(120)
def test_a_trial_goes_back_to_what_the_storage_has(
    ranks: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {"six": 6, "twelve": 12, "eighteen": 18}
    # None: most likely not the trial's storage.
    faults = start(ranks, saved)
    assert [type(each) for each in faults] == [CheckpointError] * RANKS
    assert "none of the trial's 3 checkpoints is in the checkpoint storage" in str(faults[0])
    save(tmp_path, "six")
    capsys.readouterr()
    points = start(ranks, saved)
    assert [(point.checkpoint, point.batches) for point in points] == [("six", 6)] * RANKS
    output = capsys.readouterr().out
    assert "batch 18 cannot be used: Did not find checkpoint eighteen" in output
    assert output.count("going back to the valid checkpoint of batch 6") == 1
    # One that is left and damaged: the storage is the right one.
    (tmp_path / "storage" / "six" / "numerics.json").write_text("{}")
    assert [point.batches for point in start(ranks, saved)] == [0] * RANKS
    shutil.rmtree(tmp_path / "storage")
    assert [type(each) for each in start(ranks, saved)] == [StorageError] * RANKS
