"""Command-line options that evaluate.py and predict.py share."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path,
    typer.Option(
        help="A run's folder, for its best checkpoint; one checkpoint; or a file of weights."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="For a file of weights: the detector, such as tf_efficientdet_d0."),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, help="For a file of weights: the number of classes; 90 if not given."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of the input and of the detector.")
]
