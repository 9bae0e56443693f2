"""Settings of a training process: seed, threads and kernel selection."""

import os

import psutil
import torch

from experiments.runtime.cores import cores_per_rank
from experiments.runtime.devices import allow_tf32
from experiments.settings.hparams import HParamError, HParams

# The sizes of cuBLAS's workspace with which it computes the same bits every time (its
# documentation, section "Results reproducibility").
_CUBLAS_WORKSPACES = (":4096:8", ":16:8")


def prepare_process(hparams: HParams) -> None:
    """Configure torch for training, with the same seed on every rank.

    Raises:
        HParamError: Horovod would not be deterministic.
    """
    torch.manual_seed(hparams.seed)
    _limit_threads()
    allow_tf32()
    torch.backends.cudnn.benchmark = not hparams.deterministic  # input shapes are constant
    if hparams.deterministic:
        _require_ordered_sums()
        _use_deterministic_kernels()


def _limit_threads() -> None:
    """Give torch this rank's share of the cores, unless the user has set OMP_NUM_THREADS.

    If every rank uses all cores, they slow each other down tenfold. horovodrun does not limit them,
    and torchrun gives each rank a single thread.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank()))
    elif _set_by_torchrun("OMP_NUM_THREADS"):
        torch.set_num_threads(cores_per_rank())


def _set_by_torchrun(variable: str) -> bool:
    """Return whether torchrun has set a variable of its ranks that it did not have at its start."""
    of_ranks = "TORCHELASTIC_RUN_ID"
    if of_ranks not in os.environ:
        return False
    try:
        for ancestor in psutil.Process().parents():
            if of_ranks not in (at_start := ancestor.environ()):  # torchrun itself
                return variable not in at_start
    except psutil.Error:
        pass  # of another user, or it has ended
    return False


def _use_deterministic_kernels() -> None:
    """Exclude kernels that may give other bits the next time; an operation without any fails.

    cuDNN's benchmark is off as well: which of its algorithms is fastest varies.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _CUBLAS_WORKSPACES:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = _CUBLAS_WORKSPACES[0]  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    # Otherwise each new tensor would be filled first, though nothing reads it before writing it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _require_ordered_sums() -> None:
    """Refuse Horovod's fusion of tensors, which adds up ranks in an order that depends on timing.

    With two ranks there is only one order.
    """
    if int(os.environ.get("HOROVOD_SIZE", "1")) <= 2:
        return
    if os.environ.get("HOROVOD_FUSION_THRESHOLD") != "0":
        raise HParamError(
            "deterministic: Horovod's fusion of tensors depends on timing, and so does the order "
            "of its sums over more than 2 ranks; set optimizations.tensor_fusion_threshold: 0 (for "
            "horovodrun: --fusion-threshold-mb 0), or use torchrun or Determined's "
            "torch_distributed launcher"
        )
