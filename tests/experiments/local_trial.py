"""The trial in the tests' own process, without a launcher and without a run's folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from determined import pytorch

from cocodata import load_split
from experiments.runtime.communication import SingleProcess
from experiments.settings.experiment import parse_config
from experiments.settings.hparams import as_dict
from experiments.training.run import Run, resolve_numerics
from experiments.training.trial import EfficientDetTrial


@contextlib.contextmanager
def local_trial(data: Path, batches_per_epoch: int, **hparams: Any) -> Iterator[EfficientDetTrial]:
    """A trial that is ready for its first batch, on the processor."""
    raw = {
        "data": {"path": str(data)},
        "hyperparameters": hparams,
        "searcher": {"name": "single", "metric": "AP", "smaller_is_better": False},
    }
    config = parse_config(raw)
    with pytorch.init(
        hparams=as_dict(config.hparams), exp_conf=raw, enable_tensorboard_logging=False
    ) as context:
        run = Run(
            config=config,
            train=load_split(data, "train2017"),
            val=load_split(data, "val2017"),
            communicator=SingleProcess(),
            batches_per_epoch=batches_per_epoch,
            numerics=resolve_numerics(config.hparams, context.device, SingleProcess(), {}),
        )
        yield EfficientDetTrial(context, run)
