"""Downloads checkpoints from a cluster."""

import shutil
import uuid
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from determined import errors
from determined.common import api
from determined.experimental.client import Checkpoint, Determined

from cluster.connection import MasterConnection, translate_errors
from cluster.errors import ClusterError

# The checkpoint was garbage-collected, its files are missing, or the object store denies access.
DOWNLOAD_ERRORS = (
    api.errors.APIException,
    errors.CheckpointNotFound,
    errors.CheckpointStateException,
    errors.MultipleDownloadsFailed,
    errors.NoDirectStorageAccess,
    errors.ProxiedDownloadFailed,
    BotoCoreError,
    ClientError,
)


def fetch(connection: MasterConnection, identifier: str, folder: Path) -> Path:
    """Download a checkpoint unless it is already here, and verify its digests.

    Args:
        connection: The cluster.
        identifier: An experiment's id, for its best checkpoint, or a checkpoint's UUID.
        folder: Parent folder; the checkpoint goes into a subfolder named after its UUID.

    Returns:
        The checkpoint's folder.

    Raises:
        ClusterError: There is no such checkpoint, or it is damaged or cannot be downloaded.
    """
    # Imported here because it imports torch, which takes seconds.
    from experiments.checkpoints.contents import CheckpointError, verify_digests

    cluster = connection.login()
    with translate_errors(connection):
        checkpoint = _find(cluster, identifier)
    target = folder / checkpoint.uuid
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{checkpoint.uuid}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            checkpoint.download(str(partial))
        except (OSError, RuntimeError, *DOWNLOAD_ERRORS) as error:
            raise ClusterError(
                f"checkpoint {checkpoint.uuid} cannot be downloaded: {error}"
            ) from error
        partial.rename(target)
    try:
        verify_digests(target)
    except CheckpointError as error:
        raise ClusterError(str(error)) from error
    return target


def _find(cluster: Determined, identifier: str) -> Checkpoint:
    if identifier.isdecimal():
        experiment = cluster.get_experiment(int(identifier))
        found = experiment.list_checkpoints(max_results=1)
        if not found:
            raise ClusterError(f"experiment {identifier} has no checkpoint yet")
        return found[0]
    try:
        return cluster.get_checkpoint(str(uuid.UUID(identifier)))
    except ValueError as error:
        raise ClusterError(
            f"{identifier!r} is neither an experiment id nor a checkpoint UUID"
        ) from error
