"""What happens around the batches: the trainer's state, checkpoints, the record, stopping."""

import json
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from determined import pytorch
from timm.utils import ModelEmaV3

from cocodata.files import write_atomically
from experiments.checkpoints.contents import DETECTOR, CheckpointError, write_digests
from experiments.checkpoints.local import LocalCheckpoints, SavedCheckpoint
from experiments.checkpoints.numerics import write_numerics
from experiments.checkpoints.space import require_space
from experiments.runtime.determined_internals import checkpoint_storage
from experiments.training.cluster_run import search_has_stopped
from experiments.training.metrics import LOSSES
from experiments.training.optimization import Schedule
from experiments.training.run import Run
from reporting.progress import TrainingProgress


class Trial(Protocol):
    """What the callbacks use of a trial."""

    context: pytorch.PyTorchTrialContext
    run: Run
    position: int
    ema: ModelEmaV3 | None
    schedule: Schedule
    progress: TrainingProgress

    def share_evaluated_weights(self) -> None:
        """Give every rank the weights of rank 0."""
        ...


class DivergedError(RuntimeError):
    """The training loss became NaN or infinite."""


class TrainerState(pytorch.PyTorchCallback):
    """What a checkpoint keeps besides model and optimizer: position, average, schedule."""

    def __init__(self, trial: Trial, description: str) -> None:
        self._trial = trial
        self._description = description

    def state_dict(self) -> dict[str, Any]:
        """The trial's own state."""
        trial = self._trial
        return {
            "batches": trial.position,
            "global_batch_size": trial.run.config.hparams.global_batch_size,
            "seed": trial.run.config.hparams.seed,
            "ema": trial.ema.module.state_dict() if trial.ema is not None else None,
            "schedule": trial.schedule.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            CheckpointError: the run is at another position, or would see other batches.
        """
        trial = self._trial
        # At position 0, a new run starts from another run's checkpoint and takes its weights only.
        if trial.position > 0:
            for name, now in (
                ("batches", trial.position),
                ("global_batch_size", trial.run.config.hparams.global_batch_size),
                ("seed", trial.run.config.hparams.seed),
            ):
                if state_dict[name] != now:
                    raise CheckpointError(
                        f"the checkpoint was made with {name} {state_dict[name]}, the run has "
                        f"{now}: it would see other batches; start a new run instead"
                    )
            trial.schedule.load_state_dict(state_dict["schedule"])
        if trial.ema is not None and state_dict["ema"] is not None:
            trial.ema.module.load_state_dict(state_dict["ema"])

    def on_validation_start(self) -> None:
        """Evaluate rank 0's weights on every rank."""
        self._trial.share_evaluated_weights()

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        """Give a plateau schedule the metric that a search would use."""
        trial = self._trial
        value = float(metrics[trial.run.config.metric])
        trial.schedule.validated(
            trial.position, -value if trial.run.config.smaller_is_better else value
        )

    def on_training_workload_end(
        self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]
    ) -> None:
        """Stop a run that has diverged, before it wastes days."""
        wrong = [name for name in LOSSES if not math.isfinite(avg_metrics[name])]
        if wrong:
            raise DivergedError(
                f"{', '.join(wrong)} became {avg_metrics[wrong[0]]} at or before batch "
                f"{self._trial.position}: lower lr, lengthen warmup_epochs or lower clip_grad, "
                "then resume from the last checkpoint"
            )

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        """Check that the storage has space, before a byte is written.

        Raises:
            CheckpointError: it has too little.
        """
        require_space(checkpoint_storage(self._trial.context), checkpoint)

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        """Add our own files to the checkpoint: detector, numerics and the digests of all."""
        folder = Path(checkpoint_dir)
        write_atomically(folder / DETECTOR, self._description)
        write_numerics(folder, self._trial.run.numerics)
        write_digests(folder)


class RunRecorder(pytorch.PyTorchCallback):
    """Shows progress; without a cluster, also writes metrics.jsonl, TensorBoard and an index.

    The index is that of the checkpoints. On a cluster the master keeps all of this.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._progress = trial.progress
        self._stop = False
        self._search_checks_left = 0
        self._metric: tuple[int, float] | None = None
        self._folder = trial.run.folder if trial.run.communicator.rank == 0 else None
        self._tensorboard: Any = None

    def on_training_start(self) -> None:
        """Open the record, and handle the signals that stop a run."""
        self._progress.__enter__()
        if self._trial.run.folder is None:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request_stop)
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            _forget_after(self._folder / "metrics.jsonl", self._trial.run.first_batch)
            self._tensorboard = SummaryWriter(
                str(self._folder / "tensorboard"), purge_step=self._trial.run.first_batch + 1
            )

    def on_trial_shutdown(self) -> None:
        """Close what `on_training_start` opened."""
        self._progress.__exit__(None, None, None)
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop:  # the second signal
            raise KeyboardInterrupt
        self._stop = True
        self._progress.log(
            "stopping with a checkpoint after this reporting period; repeat to stop immediately"
        )

    def on_training_workload_end(
        self, avg_metrics: dict[str, Any], batch_metrics: dict[str, Any]
    ) -> None:
        """Report the period that has ended."""
        trial = self._trial
        metrics = {name: float(avg_metrics[name]) for name in avg_metrics if name in _REPORTED}
        epochs = trial.position / trial.run.batches_per_epoch
        self._progress.report(trial.position, epochs, metrics)
        self._write("train", metrics)
        if trial.run.folder is not None:
            self._stop_together(self._stop)
        else:
            self._stop_if_the_search_did()

    def _stop_together(self, requested: bool) -> None:
        """Stop all ranks if one has to: signals and answers reach them at different times."""
        trial = self._trial
        requests = trial.run.communicator.all_reduce_sum(torch.tensor([float(requested)]))
        if float(requests) > 0:
            trial.context.set_stop_requested(True)

    def _stop_if_the_search_did(self) -> None:
        """On a cluster, stop if the search stopped this trial after its last validation."""
        trial = self._trial
        if trial.run.searched_trial is None or self._search_checks_left == 0:
            return
        self._search_checks_left -= 1
        chief = trial.run.communicator.rank == 0
        self._stop_together(chief and search_has_stopped(trial.context, trial.run.searched_trial))

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        """Report an evaluation."""
        trial = self._trial
        self._metric = (trial.position, float(metrics[trial.run.config.metric]))
        self._search_checks_left = 2
        if trial.run.communicator.rank == 0:
            self._progress.log(
                f"batch {trial.position}: AP {metrics['AP']:.4f}  AP50 {metrics['AP50']:.4f}  "
                f"loss {metrics['val_loss']:.4f} on {len(trial.run.val)} validation images"
            )
        self._write("validation", metrics)

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        """Add a complete checkpoint to the index of a local run."""
        if self._trial.run.folder is None:
            # Usually it follows the validation on which the search decided.
            self._stop_if_the_search_did()
        if self._folder is None:
            return
        position = self._trial.position
        value = self._metric[1] if self._metric and self._metric[0] == position else None
        if value is not None and self._trial.run.config.smaller_is_better:
            value = -value
        LocalCheckpoints(self._folder).add(SavedCheckpoint(uuid, position, value))

    def _write(self, kind: str, metrics: dict[str, Any]) -> None:
        if self._folder is None:
            return
        trial = self._trial
        entry = {
            "kind": kind,
            "batches": trial.position,
            "epochs": trial.position / trial.run.batches_per_epoch,
            "time": time.time(),
            **metrics,
        }
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(f"{kind}/{name}", value, trial.position)


_REPORTED = (*LOSSES, "lr", "images_per_second")


def _forget_after(file: Path, batches: int) -> None:
    """Drop the lines after the checkpoint that a run resumes from: it writes them again."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        if entry["batches"] <= batches:
            kept.append(line + "\n")
    write_atomically(file, "".join(kept))
