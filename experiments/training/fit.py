"""Hands a trial to Determined's trainer."""

from determined import pytorch

from experiments.checkpoints.detectors import allow_checkpoint_globals
from experiments.settings.experiment import Period
from experiments.training.intervals import StepInterval
from experiments.training.trial import EfficientDetTrial


def fit(trial: EfficientDetTrial) -> None:
    """Train a trial to its last batch, or until it is asked to stop."""
    run, config = trial.run, trial.run.config
    is_local = run.folder is not None
    # Without a cluster the trainer counts batches from 0 after each resume.
    offset = run.first_batch if is_local else 0

    def every(batches: int) -> pytorch.Batch:
        return pytorch.Batch(StepInterval(batches, offset=offset, last=run.total_batches))

    def in_batches(period: Period) -> int:
        return period.batches(run.batches_per_epoch, config.hparams.global_batch_size)

    allow_checkpoint_globals()
    pytorch.Trainer(trial, trial.context).fit(
        checkpoint_period=every(in_batches(config.checkpoint_period)),
        validation_period=every(in_batches(config.validation_period)),
        reporting_period=every(config.reporting_batches),
        # A search counts in epochs and compares this with its own max_time.
        max_length=pytorch.Batch(run.total_batches)
        if is_local
        else pytorch.Epoch(config.hparams.total_epochs),
        checkpoint_policy="all" if is_local else config.checkpoint_policy,
        latest_checkpoint=run.start.checkpoint,
    )
