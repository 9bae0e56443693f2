"""Training progress: a progress bar on a terminal, plain lines in a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from cocodata.text import duration

_SECONDS_BETWEEN_UPDATES = 0.5  # reading the loss synchronizes with the GPU


class TrainingProgress:
    """Shows the batches done, images/s, loss, learning rate and the time left.

    The time left extrapolates this process's average time per batch, including evaluations and
    checkpoints.
    """

    def __init__(
        self, *, first_batch: int, total_batches: int, global_batch_size: int, enabled: bool
    ) -> None:
        self._first = first_batch
        self._total = total_batches
        self._batch_size = global_batch_size
        self._enabled = enabled
        self._console = Console()
        self._bar: Progress | None = None
        self._started = self._window_started = time.monotonic()
        self._updated = 0.0
        self._window_images = 0

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} batches  {task.fields[state]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._total, completed=self._first, state=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def time_left(self, batches_done: int) -> float:
        """Estimate the seconds until the last batch; NaN before the first one."""
        done = batches_done - self._first
        if done <= 0:
            return float("nan")
        elapsed = time.monotonic() - self._started
        return elapsed / done * (self._total - batches_done)

    def needs_loss(self) -> bool:
        """Return whether the next `update` will show a loss, so that it is read only if needed."""
        return (
            self._bar is not None and time.monotonic() - self._updated >= _SECONDS_BETWEEN_UPDATES
        )

    def update(self, batches_done: int, loss: float | None, lr: float) -> None:
        """Count one more batch; the bar is redrawn if a loss is given."""
        self._window_images += self._batch_size
        if self._bar is None or loss is None:
            return
        self._updated = time.monotonic()
        self._bar.update(
            self._task,
            completed=batches_done,
            state=f"{self.images_per_second():.1f} images/s  loss {loss:.4f}  lr {lr:.2e}  "
            f"{duration(self.time_left(batches_done))} left",
        )

    def images_per_second(self) -> float:
        """Training images per second over all ranks, since the window started."""
        return self._window_images / max(time.monotonic() - self._window_started, 1e-9)

    def start_window(self) -> None:
        """Restart the measurement of images/s, such as after an evaluation."""
        self._window_images = 0
        self._window_started = time.monotonic()

    def report(self, batches_done: int, epochs: float, metrics: dict[str, float]) -> None:
        """Log the metrics of a reporting period, unless there is a bar."""
        if not self._enabled or self._bar is not None:
            return
        self.log(
            f"epoch {epochs:.2f}  batch {batches_done}/{self._total}  "
            f"loss {metrics['loss']:.4f} (class {metrics['class_loss']:.4f}, box "
            f"{metrics['box_loss']:.5f})  lr {metrics['lr']:.2e}  "
            f"{metrics['images_per_second']:.1f} images/s  "
            f"{duration(self.time_left(batches_done))} left"
        )

    def log(self, message: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(message, highlight=False)
        else:
            print(message, flush=True)


def print_error(message: str) -> None:
    """Print an error that the user can fix, without a traceback."""
    # Not wrapped, so that paths in it can be copied.
    Console(stderr=True).print(
        f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True
    )
