"""A trial on a Determined cluster: it continues from its newest valid checkpoint.

The master names the checkpoint to continue from. Its files are on storage that can fail, so they
are verified first; if they are damaged, an earlier checkpoint of the same trial takes their place.
The master drops the metrics reported after that checkpoint as soon as new ones arrive.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import determined as det
from determined import pytorch
from determined.common import api
from determined.common.api import bindings

from cocodata.text import count
from experiments.checkpoints.contents import (
    CheckpointError,
    CheckpointMissingError,
    StorageError,
    verify_digests,
)
from experiments.checkpoints.detectors import trained_categories
from experiments.checkpoints.numerics import read_numerics
from experiments.checkpoints.stored import open_checkpoint
from experiments.evaluation.loop import Evaluation
from experiments.runtime import provenance
from experiments.runtime.determined_internals import (
    experiment_config,
    set_steps_completed,
    set_trial_metadata,
    steps_completed,
    trial_session,
)
from experiments.settings.experiment import ExperimentConfig, parse_config
from experiments.settings.hparams import HParamError, as_dict, changed_from_default
from experiments.settings.yaml_files import ConfigError
from experiments.training.detector import random_backbone_notice
from experiments.training.run import Run, StartingPoint, describe_numerics
from reporting.progress import print_error

_SEARCH_POLLS = 3
_SECONDS_BETWEEN_POLLS = 0.5


class ClusterRun:
    """One trial of an experiment. Determined keeps its record."""

    folder: Path | None = None

    def __init__(self, info: det.ClusterInfo) -> None:
        """Read the trial's settings.

        Raises:
            ConfigError: the experiment's configuration is invalid.
            HParamError: its hyperparameters are invalid. In a search, the trial ends here instead,
                and the search continues without it.
        """
        self._info = info
        try:
            self.config: ExperimentConfig = parse_config(
                experiment_config(info), info.trial.hparams
            )
        except (ConfigError, HParamError) as error:
            if experiment_config(info)["searcher"]["name"] != "single":
                _reject_trial(info, error)
            raise
        self.searched_trial = None if self.config.single else info.trial.trial_id

    @contextmanager
    def open(self) -> Iterator[pytorch.PyTorchTrialContext]:
        """Join the other ranks, which Determined's launcher started."""
        with pytorch.init(
            hparams=as_dict(self.config.hparams), exp_conf=dict(self.config.raw)
        ) as context:
            yield context

    def starting_point(self, context: pytorch.PyTorchTrialContext) -> StartingPoint:
        """The newest valid checkpoint, the same on every rank.

        A trial that starts from the checkpoint of another one has no earlier ones to fall back to.

        Raises:
            CheckpointError: the checkpoint of another trial is damaged, or none of this trial's is
                in the storage.
            StorageError: the storage cannot be read.
        """
        start = self._newest_valid(context)
        set_steps_completed(self._info, context, start.batches)
        return start

    def _newest_valid(self, context: pytorch.PyTorchTrialContext) -> StartingPoint:
        if self._info.latest_checkpoint is None:
            return StartingPoint()
        newest = StartingPoint(self._info.latest_checkpoint, steps_completed(self._info))
        opened, fault = _open(context, newest)
        if fault is None:
            # A trial that starts from the checkpoint of another one takes its weights only.
            return opened if newest.batches else replace(opened, numerics={})
        if newest.batches == 0:
            raise fault
        _print(context, f"the checkpoint of batch {newest.batches} cannot be used: {fault}")
        faults = [fault]
        for earlier in self._earlier_checkpoints(context, newest):
            opened, fault = _open(context, earlier)
            if fault is None:
                _print(context, f"going back to the valid checkpoint of batch {earlier.batches}")
                return opened
            _print(context, f"the checkpoint of batch {earlier.batches} cannot be used: {fault}")
            faults.append(fault)
        if all(isinstance(each, CheckpointMissingError) for each in faults):
            # Most likely another storage is in its place: days of training would be repeated.
            raise CheckpointError(
                f"none of the trial's {count(len(faults), 'checkpoint')} is in the checkpoint "
                "storage. Make sure that the right one is mounted or configured on this host; to "
                "train from the beginning, submit the experiment again"
            )
        _print(context, "no valid checkpoint is left: starting at batch 0 again")
        return StartingPoint()

    def _earlier_checkpoints(
        self, context: pytorch.PyTorchTrialContext, newest: StartingPoint
    ) -> list[StartingPoint]:
        """The trial's other completed checkpoints, newest first."""
        points: list[StartingPoint] | None = None
        if context.distributed.get_rank() == 0:
            response = bindings.get_GetTrialCheckpoints(
                trial_session(context),
                id=self._info.trial.trial_id,
                states=[bindings.checkpointv1State.COMPLETED],
            )
            found = [
                StartingPoint(each.uuid, int(each.metadata.get("steps_completed", 0)))
                for each in response.checkpoints
                if each.uuid != newest.checkpoint
            ]
            points = sorted(
                (each for each in found if 0 < each.batches <= newest.batches),
                key=lambda each: each.batches,
                reverse=True,
            )
        shared: list[StartingPoint] = context.distributed.broadcast(points)
        return shared

    def accept(self, start: StartingPoint, changed: Sequence[str]) -> None:
        """Go on: whoever continues an experiment with other settings means to.

        `begin` says and records what has changed.
        """

    def begin(self, context: pytorch.PyTorchTrialContext, run: Run) -> None:
        """Print the settings, and store with the master what the trial runs on."""
        hparams = run.config.hparams
        print("hyperparameters:", changed_from_default(hparams), flush=True)
        print(*describe_numerics(run), sep="\n", flush=True)
        notice = random_backbone_notice(hparams)
        if notice and run.start.checkpoint is None:
            print(notice, flush=True)
        set_trial_metadata(
            context,
            {
                "versions": provenance.versions(),
                "machine": provenance.machine(),
                "device": provenance.device(),
                "precision": run.numerics.precision,
                "decoder": run.numerics.decoder,
                **({"changes": changed} if (changed := run.changed_numerics) else {}),
            },
        )

    def finish(self, run: Run, evaluate: Callable[[], Evaluation]) -> None:
        """Nothing to do: the master has every metric and checkpoint."""


def _reject_trial(info: det.ClusterInfo, error: Exception) -> None:
    """End a search's trial for good; without this the master would try it again."""
    with pytorch.init(hparams=info.trial.hparams, exp_conf=experiment_config(info)) as context:
        if context.distributed.get_rank() == 0:
            print_error(str(error))
        raise det.InvalidHP(str(error))


def search_has_stopped(context: pytorch.PyTorchTrialContext, trial_id: int) -> bool:
    """Whether the experiment's search has stopped this trial; called on the chief.

    Determined 0.38.1 does not preempt a trial that its search stops early, which would therefore
    train to its end. The decision follows a validation's report within about a second.
    """
    for _ in range(_SEARCH_POLLS):
        time.sleep(_SECONDS_BETWEEN_POLLS)
        try:
            answer = bindings.get_GetTrial(trial_session(context), trialId=trial_id)
        except (api.errors.APIException, api.errors.MasterNotFoundException, OSError):
            return False  # asked again after the next report
        if answer.trial.state is bindings.trialv1State.STOPPING_COMPLETED:
            return True
    return False


def _open(
    context: pytorch.PyTorchTrialContext, point: StartingPoint
) -> tuple[StartingPoint, CheckpointError | None]:
    """Return the point with what the chief reads in its checkpoint, or why that cannot be used.

    Raises:
        StorageError: the storage cannot be read; on every rank.
    """
    assert point.checkpoint is not None
    fault: CheckpointError | StorageError | None = None
    try:
        with open_checkpoint(context, point.checkpoint) as folder:
            if context.distributed.get_rank() == 0:
                verify_digests(folder)
                point = replace(
                    point, numerics=read_numerics(folder), trained=trained_categories(folder)
                )
    except (CheckpointError, StorageError) as error:
        fault = error
    except OSError as error:
        fault = CheckpointError(str(error))
    found = context.distributed.allgather((point, fault))
    faults = [each for _, each in found if each is not None]
    for each in faults:
        if isinstance(each, StorageError):
            raise each
    return found[0][0], faults[0] if faults else None


def _print(context: pytorch.PyTorchTrialContext, text: str) -> None:
    if context.distributed.get_rank() == 0:
        print(text, flush=True)
