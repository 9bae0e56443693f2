"""What evaluate.py and predict.py share: loading a detector, its input, and a progress bar."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.input import Batch, InputConfig
from experiments.runtime.cores import input_threads
from experiments.runtime.devices import allow_tf32, best_device, require_capability
from model import DetectorConfig, EfficientDet

DEVICES = ("auto", "cpu", "cuda")


def open_detector(
    checkpoint: Path,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> EfficientDet:
    """Load a detector for inference, with the EMA of its weights if there is one.

    Args:
        checkpoint: A checkpoint folder, the folder of a local run (for its best checkpoint), or a
            .pth, .pt or .safetensors file of weights.
        model: The detector's name, for a file of weights.
        num_classes: Its number of classes, for a file of weights.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        threads: CPU threads of the detector; None for torch's default.

    Raises:
        CheckpointError: The checkpoint is missing or unusable.
        ValueError: There is no such model or device, or torch has no code for the GPU.
    """
    from experiments.checkpoints.detectors import load_detector

    where = _device(device)
    allow_tf32()
    if threads is not None:
        torch.set_num_threads(threads)
    detector = load_detector(resolve_checkpoint(checkpoint), model=model, num_classes=num_classes)
    # The fastest memory format for convolutions on GPUs and CPUs.
    return detector.eval().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _device(name: str) -> torch.device:
    if name == "auto":
        return best_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ValueError("there is no usable GPU: use --device cpu")
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise ValueError(
            f"there is no {device}: torch sees {torch.cuda.device_count()} GPU(s), numbered from 0"
        )
    require_capability(device.index)
    # Libraries ask for the current GPU, and would use the first one next to this one.
    torch.cuda.set_device(device)
    return device


def resolve_checkpoint(path: Path) -> Path:
    """Return a local run's best checkpoint if the path is a run's folder, else the path itself."""
    from experiments.checkpoints.contents import CheckpointError
    from experiments.checkpoints.local import LocalCheckpoints

    if not path.exists():
        raise CheckpointError(
            f"{path}: does not exist; pass a run's folder, one of its checkpoints or a file of "
            "weights"
        )
    if path.is_dir() and (path / "checkpoints.json").is_file():
        checkpoints = LocalCheckpoints(path)
        best = checkpoints.best()
        if best is None:
            raise CheckpointError(f"{path}: this run has no checkpoint yet; wait for its first one")
        return checkpoints.folder(best)
    return path


def evaluation_input(
    config: DetectorConfig,
    *,
    device: torch.device,
    batch_device: torch.device | None = None,
    threads: int | None = None,
) -> InputConfig:
    """Return the input configuration of all evaluations: in training, evaluate.py and predict.py.

    Args:
        config: The detector's configuration.
        device: The device that decodes images.
        batch_device: The detector's device; None if it is the same.
        threads: CPU threads of the input pipeline; None for the default.
    """
    return InputConfig(
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        fill_color=config.fill_color,
        interpolation=config.interpolation,
        device="gpu" if device.type == "cuda" else "cpu",
        device_id=device.index or 0,
        batch_device=batch_device,
        threads=threads or input_threads(),
        channels_last=True,
    )


def with_progress(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yield the batches, and show a progress bar, speed and the time left on a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches  {task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=count, speed="")
        images = 0
        for batch in batches:
            yield batch
            images += len(batch["image_id"])
            elapsed = progress.tasks[task].elapsed
            speed = f"{images / elapsed:.1f} images/s" if elapsed else ""
            progress.update(task, advance=1, speed=speed)
