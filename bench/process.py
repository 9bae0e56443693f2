"""A contender in a process of its own: its memory, allocator and threads are nobody else's."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.measuring import ContenderSpec, Measurement, Settings

# A contender that says nothing for so long hangs; compiling for a GPU takes minutes.
_LIMIT_SECONDS = 900.0
# Libraries' threads and workers may take as long to end, after all is measured.
_EXIT_SECONDS = 10.0
_SHOWN_LINES = 15


class ContenderError(RuntimeError):
    """A contender failed; `summary` is the one line that says why, the message all of it."""

    def __init__(self, summary: str, details: str = "") -> None:
        super().__init__(f"{summary}\n{details}".strip())
        self.summary = summary


class ContenderProcess:
    """Starts a contender; it builds while others do, and works only when it is told to.

    Args:
        spec: the contender.
        settings: what it is told.
        log: file for what the contender prints.
    """

    def __init__(self, spec: ContenderSpec, settings: Settings, log: Path) -> None:
        self.spec = spec
        self._log = log
        self._finished = False
        # Spawned, not forked: nothing of this process is in the contender's memory.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(spec, settings, log, theirs, self._connection), name=spec.name
        )
        self._process.start()
        theirs.close()

    def wait_built(self) -> None:
        """Wait until the contender is built.

        Raises:
            ContenderError: it failed.
        """
        self._answer()

    def warm_up(self) -> None:
        """Have it do its first work; not while others work, whose threads would wait for its own.

        Raises:
            ContenderError: it failed.
        """
        self._connection.send(0.0)
        self._answer()

    def measure(self, seconds: float) -> Measurement:
        """Have it work for about that long.

        Raises:
            ContenderError: it failed.
        """
        self._connection.send(seconds)
        measurement: Measurement = self._answer()
        return measurement

    def finish(self) -> dict[str, float]:
        """End the process and give its peak memory by kind, MiB.

        Raises:
            ContenderError: it failed.
        """
        self._connection.send(None)
        memory: dict[str, float] = self._answer()
        self._finished = True
        return memory

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._finished:
            self._process.join(timeout=_EXIT_SECONDS)
        if self._process.is_alive():
            self._process.kill()  # and the pipes' end tells its loaders' workers to go
            self._process.join()
        self._connection.close()

    def _answer(self) -> Any:
        if not self._connection.poll(_LIMIT_SECONDS):
            raise ContenderError(f"no answer within {_LIMIT_SECONDS:.0f} s", self._printed())
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join(timeout=10)
            raise ContenderError(self._death(), self._printed()) from None
        if kind == "failed":
            raise ContenderError(*content)
        return content

    def _death(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ": out of memory?" if name == "SIGKILL" else ""
            return f"the process was ended by {name}{hint}"
        return f"the process ended with exit status {code}"

    def _printed(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
        return ""


def _serve(
    spec: ContenderSpec, settings: Settings, log: Path, connection: Connection, other: Connection
) -> None:
    """The contender's process: answers until the other end closes."""
    other.close()  # or this process would keep the pipe alive that tells it to go
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starting process decides
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        contender = spec.resolve()(settings, **spec.options)
        connection.send(("built", None))
        connection.recv()
        contender.warm_up()
        connection.send(("warm", None))
        workers_mib = 0.0
        while (seconds := connection.recv()) is not None:
            measurement = contender.measure(seconds)
            workers_mib = max(workers_mib, _workers_mib())
            connection.send(("measured", measurement))
        connection.send(("memory", _peak_memory(workers_mib)))
    except EOFError:
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(("failed", (_summary(error, settings), traceback.format_exc())))
        raise


def _summary(error: BaseException, settings: Settings) -> str:
    """The kind of error and its first line, without where this machine keeps the data."""
    message = str(error).strip().partition("\n")[0].replace(f"{settings.data}{os.sep}", "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _peak_memory(workers_mib: float) -> dict[str, float]:
    """Peak memory by kind, MiB."""
    memory = {"process": _status_kib(os.getpid(), "VmHWM") / 1024}
    if workers_mib:
        memory["loader workers"] = workers_mib
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        memory["GPU"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _workers_mib() -> float:
    """Memory that child processes have to themselves: what they share with us counts as ours."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # it ended meanwhile
                text = Path(f"/proc/{child}/smaps_rollup").read_text()
                total += sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+)", text, re.M))
    return total / 1024


def _status_kib(pid: int, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None, f"the kernel tells no {key}"
    return int(found[1])
