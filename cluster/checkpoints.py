"""Brings checkpoints from a cluster to this machine."""

import shutil
import uuid
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from determined import errors
from determined.common import api
from determined.experimental.client import Checkpoint, Determined

from cluster.connection import MasterConnection, explained
from cluster.errors import ClusterError

# Collected meanwhile, not where Determined says it is, or in an object store that refuses us.
NOT_TO_BE_HAD = (
    api.errors.APIException,
    errors.CheckpointNotFound,
    errors.CheckpointStateException,
    errors.MultipleDownloadsFailed,
    errors.NoDirectStorageAccess,
    errors.ProxiedDownloadFailed,
    BotoCoreError,
    ClientError,
)


def fetch(connection: MasterConnection, what: str, folder: Path) -> Path:
    """Download a checkpoint and hold it against its digests; return its folder.

    Args:
        connection: The cluster.
        what: An experiment's id, for its best checkpoint, or a checkpoint's UUID.
        folder: Where checkpoints are kept, each in a folder named by its UUID.

    Raises:
        ClusterError: There is no such checkpoint, or its files cannot be had or are damaged.
    """
    # Here, and not for every command: it brings torch in, which takes seconds.
    from experiments.checkpoints.contents import CheckpointError, verify_digests

    cluster = connection.login()
    with explained(connection):
        checkpoint = _find(cluster, what)
    kept = folder / checkpoint.uuid
    if not kept.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{checkpoint.uuid}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            checkpoint.download(str(beside))
        except (OSError, RuntimeError, *NOT_TO_BE_HAD) as error:
            raise ClusterError(
                f"checkpoint {checkpoint.uuid} cannot be brought here: {error}"
            ) from error
        beside.rename(kept)
    try:
        verify_digests(kept)
    except CheckpointError as error:
        raise ClusterError(str(error)) from error
    return kept


def _find(cluster: Determined, what: str) -> Checkpoint:
    if what.isdecimal():
        experiment = cluster.get_experiment(int(what))
        found = experiment.list_checkpoints(max_results=1)
        if not found:
            raise ClusterError(f"experiment {what} has no checkpoint yet")
        return found[0]
    try:
        return cluster.get_checkpoint(str(uuid.UUID(what)))
    except ValueError as error:
        raise ClusterError(
            f"{what!r} is neither an experiment's id nor a checkpoint's UUID"
        ) from error
