import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from cocodata.download.progress import Rate
from cocodata.sync.display import _View
from cocodata.text import duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_covers_the_last_seconds() -> None:
    clock = Clock()
    rate = Rate(10, clock)
    assert rate.per_second() == 0
    assert rate.seconds_for(100) is None
    for _ in range(4):
        clock.now += 1
        rate.add(50)
    assert rate.per_second() == 50
    assert rate.seconds_for(100) == 2
    # Without progress it falls, and the time left grows.
    clock.now += 4
    assert rate.per_second() == 25
    clock.now += 20
    assert rate.per_second() == 0
    assert rate.seconds_for(100) is None
    # After that it starts again.
    rate.add(30)
    assert rate.per_second() == 3


def test_durations() -> None:
    assert [duration(each) for each in (0, 61.4, 3600 + 125, 99 * 3600)] == [
        "0 s",
        "1 min 01 s",
        "1 h 02 min",
        "4 d 03 h",
    ]


def _host(name: str, failure: str | None = None, **status: Any) -> Any:
    return SimpleNamespace(host=SimpleNamespace(name=name), status=status, failure=failure)


def test_view_shows_the_hosts_that_are_furthest_behind() -> None:
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=False)
    hosts = [_host(f"h{i:02}", done=i, wanted=100, state="fetching", received=i) for i in range(40)]
    hosts[5] = _host("broken", "no route to host")
    hosts[39].status["complete"] = True
    view = _View(100, console)
    console.print(view.table(hosts, _host("source", sent=150)))
    text = out.getvalue()
    assert "40 hosts, 1 complete, 1 failed; this machine has sent 1.50 copies" in text
    assert "no route to host" in text
    assert "h00" in text
    assert "h39" not in text
    assert len(text.splitlines()) < 30
