"""The live view of all hosts while a data set is brought to them."""

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
from cocodata.sync.connection import Connection
from cocodata.sync.control import Show
from cocodata.text import duration

_ROWS = 24  # More hosts than that: the ones that are furthest behind are shown.
_LINE_EVERY = 10.0  # Seconds between lines where there is no terminal.


class _View:
    def __init__(self, size: int, limit_to: Console) -> None:
        self._size = size
        self._console = limit_to
        self._rates: dict[str, tuple[Rate, int]] = {}
        self._begin = time.monotonic()
        self._last_line = self._begin

    def _rate(self, name: str, amount: int) -> Rate:
        rate, before = self._rates.get(name, (Rate(), 0))
        if amount > before:
            rate.add(amount - before)
        self._rates[name] = rate, max(amount, before)
        return rate

    def table(self, hosts: Sequence[Connection], source: Connection | None) -> Group:
        """Return the view of this moment."""
        table = Table(box=None, pad_edge=False)
        for title in ("host", "", "", "in", "out", "left", ""):
            table.add_column(title, justify="right" if title in ("in", "out") else "left")
        shown = sorted(hosts, key=lambda c: c.news.get("done", 0))[:_ROWS]
        names = {connection.host.name for connection in shown}
        complete = failed = received = 0
        for connection in hosts:
            news, name = connection.news, connection.host.name
            done, sent = news.get("done", 0), news.get("sent", 0)
            received += news.get("received", 0)
            rate_in = self._rate(f"{name} in", news.get("received", 0))
            rate_out = self._rate(f"{name} out", sent)
            wanted = news.get("wanted", self._size)
            failed += connection.failure is not None
            complete += bool(news.get("complete"))
            if name not in names:
                continue
            state = connection.failure or ("complete" if news.get("complete") else "")
            left = None if state else rate_in.seconds_for(wanted - done)
            table.add_row(
                name,
                ProgressBar(total=max(1, wanted), completed=done, width=30),
                Text(state if state else news.get("state", "connecting"), overflow="ellipsis"),
                f"{rate_in.per_second() / 1e6:.1f} MB/s",
                f"{rate_out.per_second() / 1e6:.1f} MB/s",
                "" if left is None else duration(left),
                f"{done / max(1, wanted):4.0%}" if news else "",
            )
        lines = [f"{len(hosts)} hosts, {complete} complete, {failed} failed"]
        if source is not None and source.news:
            sent = source.news.get("sent", 0)
            rate = self._rate("source", sent).per_second() / 1e6
            copies = sent / self._size
            lines.append(f"this machine has sent {copies:.2f} copies, {rate:.1f} MB/s now")
        return Group(table, Text("; ".join(lines)))

    def line(self, hosts: Sequence[Connection]) -> None:
        """Print a line now and then, for logs."""
        now = time.monotonic()
        if now < self._last_line + _LINE_EVERY:
            return
        self._last_line = now
        done = sum(c.news.get("done", 0) for c in hosts) / max(1, len(hosts))
        failed = sum(c.failure is not None for c in hosts)
        self._console.print(
            f"{duration(now - self._begin)}  {done / self._size:.0%} of {len(hosts)} hosts' data, "
            f"{failed} failed"
        )


@contextmanager
def live_view(size: int, terminal: Path | None = None) -> Iterator[Show]:
    """Show hosts on a terminal, or print lines where there is none.

    Args:
        size: bytes that each host is to have.
        terminal: a terminal's device, where this process has none of its own.
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
