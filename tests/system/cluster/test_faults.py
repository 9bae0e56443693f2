"""Trials survive faults in a cluster, and end as if nothing had happened."""

import contextlib
import os
import shutil
import subprocess
import time
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
from tests.system.cluster.real_cluster import RealCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

# 48 images in batches of 8, and one epoch of cooldown: 120 batches.
LENGTH: dict[str, Any] = {"hyperparameters": {"epochs": 19}}
FAULT_AT = 30


@pytest.fixture(scope="module")
def undisturbed(cluster: RealCluster) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Weights and metrics of a run without a fault."""
    experiment = cluster.submit("const", **LENGTH)
    cluster.wait(experiment)
    return outcome(cluster, cluster.trial(experiment))


def outcome(
    cluster: RealCluster, trial: Trial, storage: Path | None = None
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    return (
        cluster.final_state(trial, storage),
        cluster.reports(trial, "training"),
        cluster.reports(trial, "validation"),
    )


def start(cluster: RealCluster, **changes: Any) -> tuple[Experiment, Trial]:
    """Start a run and wait until it has saved a checkpoint."""
    experiment = cluster.submit("const", **LENGTH, **changes)
    trial = cluster.trial(experiment)
    cluster.wait_for_batch(trial, FAULT_AT)
    return experiment, trial


def pause(cluster: RealCluster, experiment: Experiment) -> None:
    experiment.pause()
    cluster.wait_for_state(experiment, ExperimentState.PAUSED)


def resume(cluster: RealCluster, experiment: Experiment, trial: Trial, fault: str) -> None:
    """Resume a paused run, wait until it ends, and record how long it took to recover."""
    experiment.activate()
    resumed = time.time()
    cluster.wait(experiment)
    cluster.record_recovery(trial, fault, resumed)


def assert_undisturbed(
    cluster: RealCluster,
    trial: Trial,
    undisturbed: tuple[dict[str, Any], list[Any], list[Any]],
    storage: Path | None = None,
) -> None:
    """Check that weights and metrics are bitwise equal and that no container is left."""
    state, training, validation = outcome(cluster, trial, storage)
    assert launched.differences(state, undisturbed[0]) == []
    assert training == undisturbed[1]
    assert validation == undisturbed[2]
    # Checkpoint garbage collection may still be running.
    deadline = time.monotonic() + 120
    while cluster.task_containers() and time.monotonic() < deadline:
        time.sleep(1)
    assert cluster.task_containers() == []


def kill_and_restart(cluster: RealCluster, service: str, seconds: float) -> None:
    """Kill a service's container, and start it again after a delay."""
    cluster.docker("kill", cluster.container(service))
    try:
        time.sleep(seconds)
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
        ("engine", 0),
    ],
)
def test_a_killed_service_is_restarted(
    service: str, seconds: float, cluster: RealCluster, undisturbed: Any
) -> None:
    experiment, trial = start(cluster)
    kill_and_restart(cluster, service, seconds)
    restarted = time.time()
    cluster.wait(experiment)
    cluster.record_recovery(trial, f"{service} killed, back after {seconds:.0f} s", restarted)
    assert_undisturbed(cluster, trial, undisturbed)


def test_a_trial_is_paused_and_resumed(cluster: RealCluster, undisturbed: Any) -> None:
    experiment, trial = start(cluster)
    pause(cluster, experiment)
    resume(cluster, experiment, trial, "paused and resumed")
    assert_undisturbed(cluster, trial, undisturbed)


def test_the_cluster_is_stopped_and_started(cluster: RealCluster, undisturbed: Any) -> None:
    """Its trial's container is removed too, and the trial resumes after the restart."""
    experiment, trial = start(cluster)
    # The trial's container must be found even if the master is down.
    cluster.docker("kill", cluster.container("master"))
    cluster.restart()
    restarted = time.time()
    cluster.wait(experiment)
    cluster.record_recovery(trial, "cluster stopped and started", restarted)
    assert_undisturbed(cluster, trial, undisturbed)


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "state_dict.pth"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(checkpoint: Path) -> None:
    file = checkpoint / "state_dict.pth"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, remove])
def test_a_damaged_checkpoint(damage: Any, cluster: RealCluster, undisturbed: Any) -> None:
    """The trial logs it, and resumes from the newest valid one."""
    experiment, trial = start(cluster)
    pause(cluster, experiment)
    cluster.wait_for_no_tasks()
    (valid, _), (_, newest) = cluster.checkpoints(trial)[-2:]
    damage(newest)
    resume(cluster, experiment, trial, f"checkpoint damaged ({damage.__name__})")
    logs = cluster.trial_logs(trial)
    assert ("Did not find checkpoint" if damage is remove else "is damaged") in logs
    assert f"going back to the valid checkpoint of batch {valid}" in logs
    assert_undisturbed(cluster, trial, undisturbed)


def test_a_rank_is_killed(cluster: RealCluster) -> None:
    """One of four ranks: the trial restarts from its checkpoint, with the same result."""
    # Without tensor fusion: what Horovod fuses depends on timing, and so the order of sums would.
    four_ranks = {
        "hyperparameters": {"epochs": 7, "sync_bn": False},
        "optimizations": {"tensor_fusion_threshold": 0},
    }
    undisturbed = cluster.submit("distributed", **four_ranks)
    cluster.wait(undisturbed)

    experiment = cluster.submit("distributed", **four_ranks)
    trial = cluster.trial(experiment)
    cluster.wait_for_batch(trial, FAULT_AT)
    rank_process(2).kill()
    killed = time.time()
    cluster.wait(experiment)
    cluster.record_recovery(trial, "one of four ranks killed", killed)
    expected = outcome(cluster, cluster.trial(undisturbed))
    assert_undisturbed(cluster, trial, expected)
    assert trial.id != cluster.trial(undisturbed).id


def test_checkpoints_in_an_object_store(
    cluster: RealCluster, undisturbed: Any, tmp_path: Path
) -> None:
    """They are resumed from, garbage-collected and downloaded."""
    reason = why_missing(object_stores.IMAGE)
    if reason:
        pytest.skip(reason)
    with object_stores.object_store(f"{cluster.local.project}_trials") as store:
        experiment, trial = start(cluster, checkpoint_storage=store.config)
        _, oldest = cluster.checkpoints(trial)[0]
        pause(cluster, experiment)
        resume(cluster, experiment, trial, "paused and resumed, checkpoints in an object store")
        _, newest = cluster.checkpoints(trial)[-1]
        fetch(cluster.connection, newest.name, tmp_path)
        assert_undisturbed(cluster, trial, undisturbed, tmp_path)
        kept = {folder.name for _, folder in cluster.checkpoints(trial)}
        # Apart from TensorBoard's files.
        files = [name for name in store.names() if "/tensorboard/" not in name]
        assert {name.partition("/")[0] for name in files} == kept
        with pytest.raises(ClusterError, match="STATE_DELETED"):
            fetch(cluster.connection, oldest.name, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_checkpoint_storage(cluster: RealCluster, undisturbed: Any, tmp_path: Path) -> None:
    """The trial stops with a clear error, and resumes once there is space."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=22M", "tmpfs", str(small)], check=True)
    try:
        storage = {"type": "shared_fs", "host_path": str(small)}
        experiment = cluster.submit("const", **LENGTH, checkpoint_storage=storage, max_restarts=0)
        cluster.wait_for_state(experiment, ExperimentState.ERROR)
        trial = cluster.trial(experiment)
        logs = cluster.trial_logs(trial)
        assert "MB free, and a checkpoint needs" in logs
        assert "Traceback" not in logs
        verify_digests(cluster.checkpoints(trial, small)[-1][1])

        subprocess.run(["mount", "-o", "remount,size=400M", str(small)], check=True)
        cluster.det("experiment", "continue", str(experiment.id))
        continued = time.time()
        cluster.wait(experiment)
        cluster.record_recovery(trial, "checkpoint storage full, then enlarged", continued)
        assert_undisturbed(cluster, trial, undisturbed, small)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_old_checkpoints_are_garbage_collected(cluster: RealCluster) -> None:
    """A task in the task image deletes all but those that Determined's policy keeps."""
    experiment = cluster.submit("const")
    cluster.wait(experiment)
    trial = cluster.trial(experiment)
    validations = cluster.reports(trial, "validation")
    best = max(validations, key=lambda entry: entry["AP"])["batches"]
    # Saved after every epoch of 6 batches and evaluated after every second one. The master keeps
    # the latest checkpoint with an evaluation and the latest without one.
    expected = {best, 24, 18}
    storage = cluster.local.state / "checkpoints"
    # On a busy machine it takes minutes until the task has started.
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
    """Find the process of a rank of the running trial."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            line = process.info["cmdline"] or []
            if any(part.endswith("experiments/train.py") for part in line[1:2]) and (
                process.environ().get("HOROVOD_RANK") == str(rank)
            ):
                return process
    raise AssertionError(f"no process of rank {rank} found")
