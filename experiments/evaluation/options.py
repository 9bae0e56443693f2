"""Command-line options that evaluate.py and predict.py share."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path,
    typer.Option(
        help="A run's folder (for its best checkpoint), a checkpoint, or a file of weights."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="For a file of weights: name of the detector, such as tf_efficientdet_d0."),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, help="For a file of weights: number of classes; default 90."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of the input pipeline and of the detector.")
]
