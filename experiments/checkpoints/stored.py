"""Opens checkpoints in the storage that a cluster's trials share."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from determined import errors, pytorch

from experiments.checkpoints.contents import CheckpointMissingError, StorageError
from experiments.runtime.determined_internals import checkpoint_files


@contextmanager
def open_checkpoint(context: pytorch.PyTorchTrialContext, uuid: str) -> Iterator[Path]:
    """Yield a checkpoint's folder, which each host downloads once if necessary.

    All ranks must use this. Determined's own way leaves the other ranks of a host waiting if the
    one that downloads fails.

    Raises:
        CheckpointMissingError: The storage has no such checkpoint.
        StorageError: The storage cannot be read.
    """
    ranks = context.distributed
    with ExitStack() as opened:
        outcome: Path | Exception | None = None
        if ranks.local_rank == 0:
            outcome = _enter(opened, context, uuid)
        outcome = ranks.broadcast_local(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        try:
            yield outcome
        finally:
            ranks.gather_local(None)  # a downloaded folder is removed once all have read it


def _enter(opened: ExitStack, context: pytorch.PyTorchTrialContext, uuid: str) -> Path | Exception:
    try:
        return opened.enter_context(checkpoint_files(context, uuid))
    except errors.CheckpointNotFound as error:
        return CheckpointMissingError(str(error))
    except Exception as error:  # each kind of storage raises those of its library
        return StorageError(f"checkpoint {uuid} cannot be read: {type(error).__name__}: {error}")
