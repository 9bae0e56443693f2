"""Parts of a running cluster are killed, and the trial ends as if nothing had happened."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from determined.experimental.client import Experiment, ExperimentState, Trial

from cluster.checkpoints import fetch
from cluster.errors import ClusterError
from experiments.checkpoints.contents import verify_digests
from tests import object_store as object_stores
from tests.experiments import launched
from tests.images import why_missing
from tests.system.cluster.testing import TestCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

# 48 images in batches of 8, an epoch of cooldown: 120 batches.
LENGTH: dict[str, Any] = {"hyperparameters": {"epochs": 19}}
FAULT_AT = 30


@pytest.fixture(scope="module")
def undisturbed(cluster: TestCluster) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Weights and metrics of a run that nothing happened to."""
    experiment = cluster.submit("const", **LENGTH)
    cluster.wait(experiment)
    return outcome(cluster, cluster.trial(experiment))


def outcome(
    cluster: TestCluster, trial: Trial, storage: Path | None = None
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    return (
        cluster.final_state(trial, storage),
        cluster.reports(trial, "training"),
        cluster.reports(trial, "validation"),
    )


def begin(cluster: TestCluster, **changes: Any) -> tuple[Experiment, Trial]:
    """A run that has passed a checkpoint."""
    experiment = cluster.submit("const", **LENGTH, **changes)
    trial = cluster.trial(experiment)
    cluster.wait_for_batch(trial, FAULT_AT)
    return experiment, trial


def pause(cluster: TestCluster, experiment: Experiment) -> None:
    experiment.pause()
    cluster.wait_for_state(experiment, ExperimentState.PAUSED)


def resume(cluster: TestCluster, experiment: Experiment, trial: Trial, fault: str) -> None:
    """Let a paused run go on to its end, and note how long its next report took."""
    experiment.activate()
    back = time.time()
    cluster.wait(experiment)
    cluster.recovered(trial, fault, back)


def assert_undisturbed(
    cluster: TestCluster,
    trial: Trial,
    undisturbed: tuple[dict[str, Any], list[Any], list[Any]],
    storage: Path | None = None,
) -> None:
    """The same weights and metrics to the last bit, each metric once, and nothing left running."""
    state, training, validation = outcome(cluster, trial, storage)
    assert launched.differences(state, undisturbed[0]) == []
    assert training == undisturbed[1]
    assert validation == undisturbed[2]
    # The collection of the experiment's checkpoints may be at work.
    deadline = time.monotonic() + 120
    while cluster.task_containers() and time.monotonic() < deadline:
        time.sleep(1)
    assert cluster.task_containers() == []


@contextlib.contextmanager
def stopped(cluster: TestCluster, service: str, seconds: float) -> Iterator[None]:
    """Kill a service's container, and bring it back after a while."""
    cluster.docker("kill", cluster.container(service))
    try:
        time.sleep(seconds)
        yield
    finally:
        cluster.docker("start", cluster.container(service))


@pytest.mark.parametrize(
    ("service", "seconds"),
    [
        ("agent", 0),
        ("agent", 20),
        ("agent", 60),
        ("master", 0),
        ("master", 20),
        ("master", 60),
        ("database", 0),
    ],
)
def test_a_part_is_killed_and_comes_back(
    service: str, seconds: float, cluster: TestCluster, undisturbed: Any
) -> None:
    experiment, trial = begin(cluster)
    with stopped(cluster, service, seconds):
        pass
    back = time.time()
    cluster.wait(experiment)
    cluster.recovered(trial, f"{service} killed, back after {seconds:.0f} s", back)
    assert_undisturbed(cluster, trial, undisturbed)


def test_paused_and_resumed(cluster: TestCluster, undisturbed: Any) -> None:
    experiment, trial = begin(cluster)
    pause(cluster, experiment)
    resume(cluster, experiment, trial, "paused and resumed")
    assert_undisturbed(cluster, trial, undisturbed)


def test_the_cluster_is_stopped_and_started(cluster: TestCluster, undisturbed: Any) -> None:
    """Under a trial: its container goes too, and the trial goes on when all is there again."""
    experiment, trial = begin(cluster)
    # Not even the master is there to be asked for its trials.
    cluster.docker("kill", cluster.container("master"))
    cluster.restart()
    back = time.time()
    cluster.wait(experiment)
    cluster.recovered(trial, "cluster stopped and started", back)
    assert_undisturbed(cluster, trial, undisturbed)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte])
def test_a_damaged_checkpoint(damage: Any, cluster: TestCluster, undisturbed: Any) -> None:
    """The trial says so, and goes back to the newest one that is sound."""
    experiment, trial = begin(cluster)
    pause(cluster, experiment)
    cluster.wait_for_no_tasks()
    (sound, _), (_, newest) = cluster.checkpoints(trial)[-2:]
    damage(newest / "state_dict.pth")
    resume(cluster, experiment, trial, f"checkpoint damaged ({damage.__name__})")
    logs = cluster.logs_of(trial)
    assert "is damaged" in logs
    assert f"going back to the sound checkpoint of batch {sound}" in logs
    assert_undisturbed(cluster, trial, undisturbed)


def test_a_rank_is_killed(cluster: TestCluster) -> None:
    """One of four ranks: the trial starts anew from its checkpoint and ends the same."""
    # Unfused: what Horovod puts together depends on timing, and with it the order of the sums.
    many = {
        "hyperparameters": {"epochs": 7, "sync_bn": False},
        "optimizations": {"tensor_fusion_threshold": 0},
    }
    straight = cluster.submit("distributed", **many)
    cluster.wait(straight)

    experiment = cluster.submit("distributed", **many)
    trial = cluster.trial(experiment)
    cluster.wait_for_batch(trial, FAULT_AT)
    rank_process(2).kill()
    killed = time.time()
    cluster.wait(experiment)
    cluster.recovered(trial, "one of four ranks killed", killed)
    expected = outcome(cluster, cluster.trial(straight))
    assert_undisturbed(cluster, trial, expected)
    assert trial.id != cluster.trial(straight).id


def test_checkpoints_in_an_object_store(
    cluster: TestCluster, undisturbed: Any, tmp_path: Path
) -> None:
    """Resumed from there after a pause, collected there, and brought here from there."""
    reason = why_missing(object_stores.IMAGE)
    if reason:
        pytest.skip(reason)
    with object_stores.object_store(f"{cluster.local.project}_master") as store:
        experiment, trial = begin(cluster, checkpoint_storage=store.config)
        _, oldest = cluster.checkpoints(trial)[0]
        pause(cluster, experiment)
        resume(cluster, experiment, trial, "paused and resumed, checkpoints in an object store")
        _, newest = cluster.checkpoints(trial)[-1]
        fetch(cluster.connection, newest.name, tmp_path)
        assert_undisturbed(cluster, trial, undisturbed, tmp_path)
        kept = {folder.name for _, folder in cluster.checkpoints(trial)}
        # Beside the files of TensorBoard.
        files = [name for name in store.names() if "/tensorboard/" not in name]
        assert {name.partition("/")[0] for name in files} == kept
        with pytest.raises(ClusterError, match="STATE_DELETED"):
            fetch(cluster.connection, oldest.name, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_checkpoint_storage(cluster: TestCluster, undisturbed: Any, tmp_path: Path) -> None:
    """The trial stops with a clear error, and goes on from there once there is room."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=22M", "tmpfs", str(small)], check=True)
    try:
        storage = {"type": "shared_fs", "host_path": str(small)}
        experiment = cluster.submit("const", **LENGTH, checkpoint_storage=storage, max_restarts=0)
        cluster.wait_for_state(experiment, ExperimentState.ERROR)
        trial = cluster.trial(experiment)
        logs = cluster.logs_of(trial)
        assert "MB free, and a checkpoint needs" in logs
        assert "Traceback" not in logs
        verify_digests(cluster.checkpoints(trial, small)[-1][1])

        subprocess.run(["mount", "-o", "remount,size=400M", str(small)], check=True)
        cluster.determined("experiment", "continue", str(experiment.id))
        back = time.time()
        cluster.wait(experiment)
        cluster.recovered(trial, "checkpoint storage full, and room again", back)
        assert_undisturbed(cluster, trial, undisturbed, small)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_old_checkpoints_are_collected(cluster: TestCluster) -> None:
    """By a task in the same image, down to those that Determined's rule keeps."""
    experiment = cluster.submit("const")
    cluster.wait(experiment)
    trial = cluster.trial(experiment)
    validations = cluster.reports(trial, "validation")
    best = max(validations, key=lambda entry: entry["AP"])["batches"]
    # Saved after each epoch of 6 batches and evaluated after each second one. The master looks for
    # the latest among those with an evaluation and among those without one.
    expected = {best, 24, 18}
    storage = cluster.local.state / "checkpoints"
    # The task waits for a slot, starts its container and imports Determined: minutes, if busy.
    deadline = time.monotonic() + 300
    while len(cluster.checkpoints(trial)) > len(expected) and time.monotonic() < deadline:
        time.sleep(1)
    kept = dict(cluster.checkpoints(trial))
    assert kept.keys() == expected
    for folder in kept.values():
        verify_digests(folder)
    known = [storage / each.uuid for each in trial.list_checkpoints()]
    deleted = [folder for folder in known if folder not in kept.values()]
    assert deleted
    assert not [folder for folder in deleted if (folder / "state_dict.pth").exists()]


def rank_process(rank: int) -> psutil.Process:
    """The process of a rank of the trial that runs."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            line = process.info["cmdline"] or []
            if any(part.endswith("experiments/train.py") for part in line[1:2]) and (
                process.environ().get("HOROVOD_RANK") == str(rank)
            ):
                return process
    raise AssertionError(f"no process is rank {rank}")
