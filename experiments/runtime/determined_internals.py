"""All uses of undocumented parts of Determined 0.38.1.

Check these before pinning another version. Determined is no longer developed, so they are unlikely
to change.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import determined as det
from determined import gpu
from determined.common import api
from determined.common.api import authentication, certs
from determined.experimental import Determined

if TYPE_CHECKING:  # imports torch, which takes seconds
    from determined import pytorch


def task_session(info: det.ClusterInfo) -> api.Session:
    """Create the session of a task, before its trial has one."""
    certificate = certs.default_load(info.master_url)
    return authentication.login_from_task(info.master_url, certificate)


def compute_on(gpus: int, info: det.ClusterInfo | None) -> None:
    """Make Determined choose the device of trials by the number of GPUs that torch sees.

    By itself it counts what nvidia-smi lists. That knows nothing of CUDA_VISIBLE_DEVICES, so that a
    run which hides the GPUs would fail; and where it fails, Determined trains on the processor.
    """
    uuids = [f"GPU {number}" for number in range(gpus)]
    if info is not None:
        info._resources_info = det.ResourcesInfo(gpu_uuids=uuids)
    gpu.get_gpu_uuids = lambda: uuids


def client_of(session: api.Session) -> Determined:
    """Create Determined's client from a session that is logged in."""
    return Determined._from_session(session)


def session_of(client: Determined) -> api.Session:
    """Return a client's session, for API calls that the client has no method for."""
    return client._session


def trial_session(context: "pytorch.PyTorchTrialContext") -> api.Session:
    """Return the session with which a trial calls the master's API."""
    return context._core.train._session


def experiment_config(info: det.ClusterInfo) -> dict[str, Any]:
    """Return the experiment's complete configuration, which the master passes to a trial."""
    config: dict[str, Any] = info.trial._config
    return config


def steps_completed(info: det.ClusterInfo) -> int:
    """Return the number of batches after which the checkpoint to resume from was saved."""
    return int(info.trial._steps_completed)


def set_steps_completed(
    info: det.ClusterInfo, context: "pytorch.PyTorchTrialContext", batches: int
) -> None:
    """Make Determined count batches from a checkpoint other than the master's choice."""
    info.trial._steps_completed = batches
    context._steps_completed = batches


def checkpoint_files(
    context: "pytorch.PyTorchTrialContext", uuid: str
) -> AbstractContextManager[Path]:
    """Download a checkpoint for this rank if necessary; return a context manager for its folder."""
    from determined import core

    folder: AbstractContextManager[Path] = context._core.checkpoint.restore_path(
        uuid, core.DownloadMode.NoSharedDownload
    )
    return folder


def checkpoint_storage(context: "pytorch.PyTorchTrialContext") -> Path | None:
    """Return the folder that checkpoints are written to, or None for an object store."""
    folder = getattr(context._core.checkpoint._storage_manager, "_base_path", None)
    return Path(folder) if folder is not None else None


def set_trial_metadata(context: "pytorch.PyTorchTrialContext", metadata: dict[str, Any]) -> None:
    """Store metadata of the trial on the master."""
    context._core.train.set_metadata(metadata)
