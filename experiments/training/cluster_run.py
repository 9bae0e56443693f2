"""A trial on a Determined cluster: it goes on from the newest checkpoint that is sound.

The master names the checkpoint to go on from. Its files lie on storage that can fail, so they are
held against their digests first; where they are damaged, an earlier checkpoint of the same trial
takes their place. The master forgets the metrics reported after that one as soon as new ones come.
"""

import time
from dataclasses import dataclass

import determined as det
from determined import pytorch
from determined.common import api
from determined.common.api import bindings

from experiments.checkpoints.contents import CheckpointError, verify_digests

_QUESTIONS = 3
_SECONDS_BETWEEN_QUESTIONS = 0.5


@dataclass(frozen=True)
class ResumePoint:
    """Where a trial goes on."""

    checkpoint: str | None
    batches: int


def resume_point(context: pytorch.PyTorchTrialContext, info: det.ClusterInfo) -> ResumePoint:
    """The newest sound checkpoint to go on from, the same on every rank.

    A trial that starts from the checkpoint of another one has no earlier ones to fall back to.

    Raises:
        CheckpointError: The checkpoint of another trial is damaged.
    """
    ordered = info.latest_checkpoint
    if ordered is None:
        return ResumePoint(None, 0)
    first = ResumePoint(ordered, int(info.trial._steps_completed))
    damage = _damage(context, first)
    if damage is None:
        return first
    if first.batches == 0:
        raise CheckpointError(damage)
    _say(context, f"the checkpoint of batch {first.batches} cannot be used: {damage}")
    for earlier in _earlier_checkpoints(context, info, first):
        damage = _damage(context, earlier)
        if damage is None:
            _say(context, f"going back to the sound checkpoint of batch {earlier.batches}")
            return earlier
        _say(context, f"the checkpoint of batch {earlier.batches} cannot be used: {damage}")
    _say(context, "no sound checkpoint is left: starting at batch 0 again")
    return ResumePoint(None, 0)


def go_on_from(
    context: pytorch.PyTorchTrialContext, info: det.ClusterInfo, point: ResumePoint
) -> None:
    """Make Determined count batches from a place that is not the one that the master named."""
    info.trial._steps_completed = point.batches
    context._steps_completed = point.batches


def search_has_decided(context: pytorch.PyTorchTrialContext, trial_id: int) -> bool:
    """Whether the experiment's search wants no more of this trial; asked on the chief.

    Determined 0.38.1 does not preempt a trial that its search stops early, so without asking it
    would train to its end. The decision follows a validation's report within a second or so.
    """
    for _ in range(_QUESTIONS):
        time.sleep(_SECONDS_BETWEEN_QUESTIONS)
        try:
            answer = bindings.get_GetTrial(context._core.train._session, trialId=trial_id)
        except (api.errors.APIException, api.errors.MasterNotFoundException, OSError):
            return False  # it is asked again
        if answer.trial.state is bindings.trialv1State.STOPPING_COMPLETED:
            return True
    return False


def _damage(context: pytorch.PyTorchTrialContext, point: ResumePoint) -> str | None:
    """What is wrong with a checkpoint, as the chief sees it; None if nothing is."""
    assert point.checkpoint is not None
    damage: str | None = None
    try:
        with context._core.checkpoint.restore_path(point.checkpoint) as folder:
            if context.distributed.get_rank() == 0:
                verify_digests(folder)
    except (CheckpointError, OSError) as error:
        damage = str(error)
    found = [each for each in context.distributed.allgather(damage) if each is not None]
    return found[0] if found else None


def _earlier_checkpoints(
    context: pytorch.PyTorchTrialContext, info: det.ClusterInfo, first: ResumePoint
) -> list[ResumePoint]:
    """The trial's other finished checkpoints, newest first."""
    points: list[ResumePoint] | None = None
    if context.distributed.get_rank() == 0:
        response = bindings.get_GetTrialCheckpoints(
            context._core.train._session,
            id=info.trial.trial_id,
            states=[bindings.checkpointv1State.COMPLETED],
        )
        found = [
            ResumePoint(each.uuid, int(each.metadata.get("steps_completed", 0)))
            for each in response.checkpoints
            if each.uuid != first.checkpoint
        ]
        points = sorted(
            (each for each in found if 0 < each.batches <= first.batches),
            key=lambda each: each.batches,
            reverse=True,
        )
    shared: list[ResumePoint] = context.distributed.broadcast(points)
    return shared


def _say(context: pytorch.PyTorchTrialContext, text: str) -> None:
    if context.distributed.get_rank() == 0:
        print(text, flush=True)
