"""Progress bars, shown only on a terminal."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cocodata.download.archives import Archive
from cocodata.download.download import DownloadListener
from cocodata.text import duration


class Rate:
    """The rate of progress over the last seconds, not since the start.

    It falls when progress stops.
    """

    def __init__(self, window: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Start measuring.

        Args:
            window: seconds over which the rate is measured.
            clock: returns the time in seconds.
        """
        self._window = window
        self._clock = clock
        self._begin = clock()
        self._steps: deque[tuple[float, float]] = deque()

    def add(self, amount: float) -> None:
        """Count an amount that was done now."""
        self._steps.append((self._clock(), amount))

    def per_second(self) -> float:
        """Return the rate."""
        now = self._clock()
        while self._steps and self._steps[0][0] < now - self._window:
            self._steps.popleft()
        seconds = min(self._window, now - self._begin)
        return sum(amount for _, amount in self._steps) / seconds if seconds > 0 else 0.0

    def seconds_for(self, amount: float) -> float | None:
        """Return how long an amount will take at this rate; None without progress."""
        rate = self.per_second()
        return amount / rate if rate > 0 else None


class _SpeedColumn(ProgressColumn):
    """Speed and time left of a task with its `Rate` in a field."""

    def render(self, task: Task) -> Text:
        rate: Rate = task.fields["rate"]
        if task.finished or task.total is None:
            return Text("")
        speed = f"{rate.per_second() / 1e6:6.1f} MB/s"
        seconds = rate.seconds_for(task.total - task.completed)
        return Text(speed if seconds is None else f"{speed}  {duration(seconds)} left")


class DownloadDisplay(DownloadListener):
    """A bar for every archive and one for all of them."""

    def __init__(self, progress: Progress) -> None:
        """Show on a progress display made by `download_display`."""
        self._progress = progress
        self._lock = threading.Lock()
        self._tasks: dict[str, tuple[TaskID, Rate]] = {}
        self._all = progress.add_task("all", total=0, rate=Rate(), visible=False)
        self._rate: Rate = progress.tasks[0].fields["rate"]

    def begin(self, archive: Archive, size: int | None, present: int) -> None:
        """Add a bar; bytes that were already on disk do not count for the speed."""
        rate = Rate()
        with self._lock:
            task = self._progress.add_task(archive.name, total=size, completed=present, rate=rate)
            self._tasks[archive.name] = task, rate
            total = self._progress.tasks[0]
            self._progress.update(
                self._all,
                total=(total.total or 0) + (size or 0),
                completed=total.completed + present,
                visible=len(self._tasks) > 1,
            )

    def advance(self, archive: Archive, amount: int) -> None:
        """Move the bars."""
        with self._lock:
            task, rate = self._tasks[archive.name]
            for each, its_rate in ((task, rate), (self._all, self._rate)):
                its_rate.add(amount)
                self._progress.advance(each, amount)

    def check(self, archive: Archive) -> None:
        """Show that the checksum is being computed."""
        if archive.name in self._tasks:
            task = self._tasks[archive.name][0]
            self._progress.update(task, description=f"{archive.name} (checksum)")

    def end(self, archive: Archive) -> None:
        """Remove the note about the checksum."""
        self._progress.update(self._tasks[archive.name][0], description=archive.name)


@contextmanager
def download_display() -> Iterator[tuple[DownloadDisplay, Callable[[str], None]]]:
    """Show a download; yields its listener, and a function that prints a note above the bars."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        _SpeedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield DownloadDisplay(progress), lambda note: console.print(note, markup=False)


@contextmanager
def byte_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar of bytes per step; yields a function that advances one by its name."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        _SpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        tasks: dict[str, tuple[TaskID, Rate]] = {}

        def advance(what: str, amount: int, total: int) -> None:
            if what not in tasks:
                rate = Rate()
                tasks[what] = progress.add_task(what, total=total, rate=rate), rate
            tasks[what][1].add(amount)
            progress.advance(tasks[what][0], amount)

        yield advance


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left; yields a function that advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
