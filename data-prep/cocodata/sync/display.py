"""The live view of all hosts during coco-sync."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cocodata.download.progress import Rate
from cocodata.sync.connection import AgentConnection
from cocodata.sync.exchange import Show
from cocodata.text import duration

_ROWS = 24  # With more hosts, those that are furthest behind are shown.
_LINE_EVERY = 10.0  # Seconds between lines if there is no terminal.


class _View:
    def __init__(self, size: int, console: Console) -> None:
        self._size = size
        self._console = console
        self._rates: dict[str, tuple[Rate, int]] = {}
        self._begin = time.monotonic()
        self._last_line = self._begin

    def _rate(self, name: str, amount: int) -> Rate:
        rate, before = self._rates.get(name, (Rate(), 0))
        if amount > before:
            rate.add(amount - before)
        self._rates[name] = rate, max(amount, before)
        return rate

    def table(self, hosts: Sequence[AgentConnection], source: AgentConnection | None) -> Group:
        """Return the current view."""
        table = Table(box=None, pad_edge=False)
        for title in ("host", "", "", "in", "out", "left", ""):
            table.add_column(title, justify="right" if title in ("in", "out") else "left")
        shown = sorted(hosts, key=lambda c: c.status.get("done", 0))[:_ROWS]
        names = {connection.host.name for connection in shown}
        complete = failed = 0
        for connection in hosts:
            status, name = connection.status, connection.host.name
            done, sent = status.get("done", 0), status.get("sent", 0)
            rate_in = self._rate(f"{name} in", status.get("received", 0))
            rate_out = self._rate(f"{name} out", sent)
            wanted = status.get("wanted", self._size)
            failed += connection.failure is not None
            complete += bool(status.get("complete"))
            if name not in names:
                continue
            state = connection.failure or ("complete" if status.get("complete") else "")
            left = None if state else rate_in.seconds_for(wanted - done)
            table.add_row(
                name,
                ProgressBar(total=max(1, wanted), completed=done, width=30),
                Text(state if state else status.get("state", "connecting"), overflow="ellipsis"),
                f"{rate_in.per_second() / 1e6:.1f} MB/s",
                f"{rate_out.per_second() / 1e6:.1f} MB/s",
                "" if left is None else duration(left),
                f"{done / max(1, wanted):4.0%}" if status else "",
            )
        lines = [f"{len(hosts)} hosts, {complete} complete, {failed} failed"]
        if source is not None and source.status:
            sent = source.status.get("sent", 0)
            rate = self._rate("source", sent).per_second() / 1e6
            copies = sent / self._size
            lines.append(f"this machine has sent {copies:.2f} copies, {rate:.1f} MB/s now")
        return Group(table, Text("; ".join(lines)))

    def line(self, hosts: Sequence[AgentConnection]) -> None:
        """Print a line from time to time, for logs."""
        now = time.monotonic()
        if now < self._last_line + _LINE_EVERY:
            return
        self._last_line = now
        done = sum(c.status.get("done", 0) for c in hosts) / max(1, len(hosts))
        failed = sum(c.failure is not None for c in hosts)
        self._console.print(
            f"{duration(now - self._begin)}  {done / self._size:.0%} of {len(hosts)} hosts' data, "
            f"{failed} failed"
        )


@contextmanager
def live_view(size: int, terminal: Path | None = None) -> Iterator[Show]:
    """Show hosts on a terminal, or print lines if there is none.

    Args:
        size: bytes of the image.
        terminal: device of a terminal, if this process has none of its own.
    """
    if terminal is not None and terminal.is_char_device():
        with terminal.open("w") as device, _live(Console(file=device), size) as show:
            yield show
    else:
        with _live(Console(stderr=True), size) as show:
            yield show


@contextmanager
def _live(console: Console, size: int) -> Iterator[Show]:
    view = _View(size, console)
    if not console.is_terminal:
        yield lambda hosts, _: view.line(hosts)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda hosts, source: live.update(view.table(hosts, source))
