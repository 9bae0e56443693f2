#!/usr/bin/env python3
"""Train EfficientDet: the one entry point for python, torchrun, horovodrun and Determined.

On a Determined cluster everything comes from the experiment's configuration and there are no
arguments. Without one, `--config` names the same kind of file and `--out` a folder for the run;
a run that was cut off goes on where its last checkpoint left it.
"""

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

# The trial is started as a script, on a cluster from a copy of the project: its packages are found
# beside this file, not installed.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data-prep")]

import determined as det  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from determined import pytorch  # noqa: E402

from cocodata import DatasetError  # noqa: E402
from experiments.checkpoints.contents import CheckpointError  # noqa: E402
from experiments.checkpoints.detectors import allow_checkpoint_globals  # noqa: E402
from experiments.checkpoints.local import SavedCheckpoint  # noqa: E402
from experiments.input import SampleError, default_threads  # noqa: E402
from experiments.runtime import provenance  # noqa: E402
from experiments.runtime.communication import communicator, start_distributed  # noqa: E402
from experiments.runtime.devices import DeviceError, allow_tf32, require_usable_gpus  # noqa: E402
from experiments.settings.experiment import (  # noqa: E402
    ConfigError,
    ExperimentConfig,
    apply_overlay,
    apply_settings,
    parse_config,
    read_yaml,
)
from experiments.settings.hparams import HParamError, as_dict, changed_from_default  # noqa: E402
from experiments.training import local_run  # noqa: E402
from experiments.training.callbacks import DivergedError  # noqa: E402
from experiments.training.cluster_run import go_on_from, resume_point  # noqa: E402
from experiments.training.dataset import load_splits  # noqa: E402
from experiments.training.detector import random_backbone_notice  # noqa: E402
from experiments.training.intervals import StepInterval  # noqa: E402
from experiments.training.trial import EfficientDetTrial, Run  # noqa: E402
from reporting.progress import print_error  # noqa: E402

USER_ERRORS = (
    CheckpointError,
    ConfigError,
    DatasetError,
    DeviceError,
    DivergedError,
    FileNotFoundError,
    HParamError,
    SampleError,
    local_run.RunError,
)


def _prepare_torch(seed: int) -> None:
    """Settings of the process: the same first weights on every rank, fast kernels."""
    torch.manual_seed(seed)
    # Ranks that each take all of a machine's cores slow each other tenfold; torchrun leaves each
    # one thread, horovodrun says nothing.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), default_threads()))
    allow_tf32()
    torch.backends.cudnn.benchmark = True  # shapes never change
    allow_checkpoint_globals()


def _make_run(
    context: pytorch.PyTorchTrialContext,
    config: ExperimentConfig,
    folder: Path | None,
    first_batch: int,
    searched_trial: int | None = None,
) -> Run:
    hparams = config.hparams
    ranks = communicator()
    if hparams.global_batch_size % ranks.size:
        raise HParamError(
            f"global_batch_size: {hparams.global_batch_size} cannot be shared out to {ranks.size} "
            f"ranks; use a multiple of {ranks.size}"
        )
    train, val = load_splits(config, context.distributed)
    return Run(
        config=config,
        train=train,
        val=val,
        communicator=ranks,
        first_batch=first_batch,
        batches_per_epoch=math.ceil(len(train) / hparams.global_batch_size),
        folder=folder,
        searched_trial=searched_trial,
    )


def _fit(
    trial: EfficientDetTrial, context: pytorch.PyTorchTrialContext, checkpoint: str | None
) -> None:
    """Hand the trial to Determined's trainer with the periods of its configuration."""
    run, config = trial.run, trial.run.config
    local = run.folder is not None
    # Off a cluster the trainer counts its batches from 0 after each resume; on one it does not.
    offset = run.first_batch if local else 0

    def every(batches: int) -> pytorch.Batch:
        return pytorch.Batch(StepInterval(batches, offset=offset, last=run.total_batches))

    def period(name: str) -> pytorch.Batch:
        return every(
            getattr(config, name).batches(run.batches_per_epoch, config.hparams.global_batch_size)
        )

    pytorch.Trainer(trial, context).fit(
        checkpoint_period=period("checkpoint_period"),
        validation_period=period("validation_period"),
        reporting_period=every(config.reporting_batches),
        # A search counts in epochs and compares this with its own max_time.
        max_length=pytorch.Batch(run.total_batches)
        if local
        else pytorch.Epoch(trial.hparams.total_epochs),
        checkpoint_policy="all" if local else config.checkpoint_policy,
        latest_checkpoint=checkpoint,
    )


def train_on_cluster(info: det.ClusterInfo) -> None:
    """One trial of an experiment, as the master ordered it."""
    refused: Exception | None = None
    config: ExperimentConfig | None = None
    try:
        config = parse_config(info.trial._config, info.trial.hparams)
    except (ConfigError, HParamError) as error:
        refused = error
    hparams = as_dict(config.hparams) if config else info.trial.hparams
    _prepare_torch(config.hparams.seed if config else 0)
    with pytorch.init(hparams=hparams, exp_conf=info.trial._config) as context:
        if config is None:
            assert refused is not None
            if info.trial._config["searcher"]["name"] == "single":
                raise refused
            # A search goes on without this trial, and does not try it again.
            if context.distributed.get_rank() == 0:
                print_error(str(refused))
            raise det.InvalidHP(str(refused))
        point = resume_point(context, info)
        go_on_from(context, info, point)
        torch.manual_seed(config.hparams.seed)
        single = info.trial._config["searcher"]["name"] == "single"
        searched = None if single else info.trial.trial_id
        run = _make_run(context, config, None, point.batches, searched)
        trial = EfficientDetTrial(context, run)
        if run.communicator.rank == 0:
            print("hyperparameters:", changed_from_default(config.hparams), flush=True)
            notice = random_backbone_notice(config.hparams)
            if notice and point.checkpoint is None:
                print(notice, flush=True)
            context._core.train.set_metadata(
                {
                    "versions": provenance.versions(),
                    "machine": provenance.machine(),
                    "device": provenance.device(),
                }
            )
        _fit(trial, context, point.checkpoint)


def _place_in(
    out: Path, config: ExperimentConfig, *, fresh: bool, skip_damaged: bool
) -> SavedCheckpoint | Exception | str:
    """Where the run in a folder is: at a checkpoint, at its "start", "finished" or not usable."""
    try:
        if fresh:
            local_run.remove(out)
        checkpoint = local_run.resume_point(out, config, skip_damaged=skip_damaged)
    except (CheckpointError, local_run.RunError) as error:
        return error
    return "finished" if local_run.is_finished(out) else checkpoint or "start"


def train_locally(raw: dict[str, Any], out: Path, *, fresh: bool, skip_damaged: bool) -> None:
    """A run without a cluster, in a folder of its own."""
    config = parse_config(local_run.with_absolute_paths(raw))
    _prepare_torch(config.hparams.seed)
    distributed = start_distributed()
    chief = distributed is None or distributed.get_rank() == 0
    place = _place_in(out, config, fresh=fresh, skip_damaged=skip_damaged) if chief else None
    if distributed is not None:
        # The folder may lie on the first rank's host only, and is about to change.
        place = distributed.broadcast(place)
    if isinstance(place, Exception):
        raise place
    if place == "finished":
        if chief:
            print(f"this run is finished: look at {out}, or give --fresh to train it anew")
        return
    checkpoint = place if isinstance(place, SavedCheckpoint) else None
    os.environ["XDG_DATA_HOME"] = str(local_run.checkpoints(out).data_home)
    # Determined copies the working directory into each checkpoint: give it one with nothing in it.
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    with pytorch.init(
        hparams=as_dict(config.hparams),
        exp_conf=raw,
        distributed=distributed,
        enable_tensorboard_logging=False,  # the run's record writes it
    ) as context:
        run = _make_run(context, config, out, checkpoint.batches if checkpoint else 0)
        if chief:
            local_run.begin(out, config, run.train, run.val)
            print(_opening(run, config), flush=True)
        torch.manual_seed(config.hparams.seed)
        trial = EfficientDetTrial(context, run)
        started = time.monotonic()
        _fit(trial, context, checkpoint.uuid if checkpoint else None)
        if chief and trial.position >= run.total_batches:
            local_run.finish(out, trial, time.monotonic() - started)


def _opening(run: Run, config: ExperimentConfig) -> str:
    notice = random_backbone_notice(config.hparams)
    start = f"resuming at batch {run.first_batch}" if run.first_batch else "starting"
    return (
        f"{start}: {config.hparams.model} on {config.data} ({len(run.train)} training, "
        f"{len(run.val)} validation images), {run.total_batches} batches of "
        f"{config.hparams.global_batch_size} over {run.communicator.size} rank(s)\n"
        f"hyperparameters: {json.dumps(changed_from_default(config.hparams))}"
    ) + (f"\n{notice}" if notice and not run.first_batch else "")


def main(
    *,
    config: Annotated[
        Path | None, typer.Option(help="An experiment's YAML file (without a cluster).")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the run: checkpoints, metrics, report.")
    ] = Path("runs/local"),
    data: Annotated[
        Path | None, typer.Option(help="Data set folder in COCO's layout; else data.path.")
    ] = None,
    overlays: Annotated[
        list[Path] | None,
        typer.Option("--overlay", help="A YAML file of changes to --config; may be repeated."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A hyperparameter, such as lr=0.01.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Delete an earlier run in the folder.")] = False,
    skip_damaged: Annotated[
        bool, typer.Option(help="Resume from the newest checkpoint that is sound.")
    ] = False,
) -> None:
    """Train EfficientDet, on a Determined cluster or without one."""
    # Determined logs each status change; what a person should see, the trial prints.
    logging.getLogger("determined").setLevel(logging.WARNING)
    info = det.get_cluster_info()
    try:
        require_usable_gpus()
        if info is not None and info.task_type == "TRIAL":
            train_on_cluster(info)
        elif config is None:
            raise ConfigError("no cluster here: give --config FILE, such as experiments/const.yaml")
        else:
            raw = read_yaml(config)
            for overlay in overlays or []:
                apply_overlay(raw, read_yaml(overlay))
            apply_settings(raw, settings or [])
            if data is not None:
                raw["data"] = {**(raw.get("data") or {}), "path": str(data)}
            train_locally(raw, out.resolve(), fresh=fresh, skip_damaged=skip_damaged)
    except USER_ERRORS as error:
        print_error(str(error))
        raise typer.Exit(1) from error


if __name__ == "__main__":
    # A traceback of a failure that is not the user's stays Python's own: short, and whole in logs.
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
