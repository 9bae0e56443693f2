"""Every use of Determined 0.38.1 that its documentation does not cover, in one place.

Determined is no longer developed, so these names will not change; whoever replaces it, or pins
another version, finds here all that has to be checked.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import determined as det
from determined.common import api
from determined.experimental import Determined

if TYPE_CHECKING:  # it imports torch, which takes commands that need none seconds
    from determined import pytorch


def client_of(session: api.Session) -> Determined:
    """Determined's client on a session that is logged in."""
    return Determined._from_session(session)


def session_of(client: Determined) -> api.Session:
    """The session under a client, for calls of the master's API that the client does not offer."""
    return client._session


def trial_session(context: "pytorch.PyTorchTrialContext") -> api.Session:
    """The session with which a trial calls the master's API."""
    return context._core.train._session


def experiment_config(info: det.ClusterInfo) -> dict[str, Any]:
    """The experiment's whole configuration, as the master gives it to a trial."""
    config: dict[str, Any] = info.trial._config
    return config


def steps_completed(info: det.ClusterInfo) -> int:
    """The batches that the checkpoint named by the master was saved after."""
    return int(info.trial._steps_completed)


def set_steps_completed(
    info: det.ClusterInfo, context: "pytorch.PyTorchTrialContext", batches: int
) -> None:
    """Make Determined count batches from a checkpoint other than the one the master named."""
    info.trial._steps_completed = batches
    context._steps_completed = batches


def checkpoint_files(
    context: "pytorch.PyTorchTrialContext", uuid: str
) -> AbstractContextManager[Path]:
    """A checkpoint's folder on this machine, downloaded if necessary, while the context is open."""
    folder: AbstractContextManager[Path] = context._core.checkpoint.restore_path(uuid)
    return folder


def checkpoint_storage(context: "pytorch.PyTorchTrialContext") -> Path | None:
    """The folder that checkpoints are written to; None for an object store."""
    folder = getattr(context._core.checkpoint._storage_manager, "_base_path", None)
    return Path(folder) if folder is not None else None


def set_trial_metadata(context: "pytorch.PyTorchTrialContext", metadata: dict[str, Any]) -> None:
    """Store facts about the trial with the master."""
    context._core.train.set_metadata(metadata)
