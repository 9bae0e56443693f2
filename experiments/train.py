#!/usr/bin/env python3
"""Train EfficientDet: the one entry point for python, torchrun, horovodrun and Determined.

On a Determined cluster everything comes from the experiment's configuration, and there are no
arguments. Without one, `--config` names the same kind of file and `--out` a folder for the run;
an interrupted run continues from its last checkpoint.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

# This file is run as a script, on a cluster from a copy of the project: its packages are next to
# its folder, not installed.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data-prep")]

import determined as det  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402

from experiments.runtime.compiler import postpone_compiler  # noqa: E402

postpone_compiler()  # before anything imports timm

from cocodata import DatasetError  # noqa: E402
from experiments.checkpoints.contents import CheckpointError, StorageError  # noqa: E402
from experiments.input import SampleError  # noqa: E402
from experiments.runtime.determined_internals import compute_on  # noqa: E402
from experiments.runtime.devices import idle_gpus, require_usable_gpus, usable_gpu_count  # noqa: E402
from experiments.runtime.gpus import DeviceError  # noqa: E402
from experiments.runtime.interface import other_hosts, use_trial_interface  # noqa: E402
from experiments.runtime.process import prepare_process  # noqa: E402
from experiments.runtime.slots import require_own_gpu  # noqa: E402
from experiments.settings.experiment import load_config  # noqa: E402
from experiments.settings.hparams import HParamError  # noqa: E402
from experiments.settings.yaml_files import ConfigError  # noqa: E402
from experiments.training.callbacks import DivergedError  # noqa: E402
from experiments.training.cluster_run import ClusterRun  # noqa: E402
from experiments.training.fit import fit  # noqa: E402
from experiments.training.local_run import LocalRun, RunError  # noqa: E402
from experiments.training.run import RunHome, prepare_run  # noqa: E402
from experiments.training.trial import EfficientDetTrial  # noqa: E402
from reporting.progress import print_error  # noqa: E402

USER_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, DeviceError, DivergedError, FileNotFoundError),
    *(HParamError, RunError, SampleError, StorageError),
)


def train(home: RunHome) -> None:
    """Train a run from its starting point to its last batch."""
    seed = home.config.hparams.seed
    prepare_process(home.config.hparams)
    with home.open() as context:
        start = home.starting_point(context)
        if start.finished:
            return
        run = prepare_run(home, context.distributed, start, context.device)
        is_chief = run.communicator.rank == 0
        if is_chief:
            home.begin(context, run)
        torch.manual_seed(seed)  # the same first weights on every rank
        trial = EfficientDetTrial(context, run)
        fit(trial)
        if is_chief and trial.position >= run.total_batches:
            home.finish(run, trial.last_evaluation)


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
        list[str] | None,
        typer.Option(
            "--set",
            help="A hyperparameter, such as lr=0.01; docs/training.md lists all of them. "
            "May be repeated.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option(help="Delete an earlier run in the folder and start again.")
    ] = False,
    skip_damaged: Annotated[
        bool,
        typer.Option(help="Resume from the newest valid checkpoint if the newest one is damaged."),
    ] = False,
    other_numerics: Annotated[
        bool,
        typer.Option(
            help="Resume although weights will be computed in another way: on another kind of "
            "device, or with another amp_dtype, compile, deterministic, input_device, "
            "hardware_decoder or sync_bn_with_horovod."
        ),
    ] = False,
) -> None:
    """Train EfficientDet, on a Determined cluster or without one."""
    # Determined logs each change of state; what a person should see, the trial prints.
    logging.getLogger("determined").setLevel(logging.WARNING)
    info = det.get_cluster_info()
    try:
        require_usable_gpus()
        compute_on(usable_gpu_count(), info)
        if info is not None and info.task_type == "TRIAL":
            require_own_gpu(info)
            use_trial_interface(other_hosts(info))
            train(ClusterRun(info))
            return
        if notice := idle_gpus():
            print(notice, file=sys.stderr)
        if config is None:
            raise ConfigError("no cluster here: give --config FILE, such as experiments/const.yaml")
        loaded = load_config(config, overlays=overlays or [], settings=settings or [], data=data)
        use_trial_interface()
        home = LocalRun(
            loaded,
            out.resolve(),
            fresh=fresh,
            skip_damaged=skip_damaged,
            other_numerics=other_numerics,
        )
        train(home)
    except USER_ERRORS as error:
        print_error(str(error))
        raise typer.Exit(1) from error


if __name__ == "__main__":
    # The traceback of an unexpected error stays Python's own: short, and complete in logs.
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
