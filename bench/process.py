"""Runs a contender in its own process, so that memory and threads are not shared with others."""

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

# Compiling for a GPU takes minutes.
_TIMEOUT_SECONDS = 900.0
# Time for libraries' threads and workers to end after the last measurement.
_EXIT_SECONDS = 10.0
_LOG_LINES = 15


class ContenderError(RuntimeError):
    """A contender failed; `summary` is one line, the message has the details too."""

    def __init__(self, summary: str, details: str = "") -> None:
        super().__init__(f"{summary}\n{details}".strip())
        self.summary = summary


class ContenderProcess:
    """A contender's process: it builds the contender at once, and measures on request.

    Args:
        spec: The contender.
        settings: Its settings.
        log: File for its output.
    """

    def __init__(self, spec: ContenderSpec, settings: Settings, log: Path) -> None:
        self.spec = spec
        self._log = log
        self._finished = False
        # Spawned, not forked, so that the contender's memory has nothing from this process.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(spec, settings, log, theirs, self._connection), name=spec.name
        )
        self._process.start()
        theirs.close()

    def wait_until_built(self) -> None:
        """Wait until the contender is built.

        Raises:
            ContenderError: It failed.
        """
        self._receive()

    def warm_up(self) -> None:
        """Warm the contender up; while others work, they would slow each other down.

        Raises:
            ContenderError: It failed.
        """
        self._connection.send(0.0)
        self._receive()

    def measure(self, seconds: float) -> Measurement:
        """Measure for about that long.

        Raises:
            ContenderError: It failed.
        """
        self._connection.send(seconds)
        measurement: Measurement = self._receive()
        return measurement

    def finish(self) -> dict[str, float]:
        """End the process and return its peak memory by kind, MiB.

        Raises:
            ContenderError: It failed.
        """
        self._connection.send(None)
        memory: dict[str, float] = self._receive()
        self._finished = True
        return memory

    def close(self) -> None:
        """End the process, by force unless it has finished."""
        if self._finished:
            self._process.join(timeout=_EXIT_SECONDS)
        if self._process.is_alive():
            self._process.kill()  # its loaders' workers end when their pipes close
            self._process.join()
        self._connection.close()

    def _receive(self) -> Any:
        if not self._connection.poll(_TIMEOUT_SECONDS):
            raise ContenderError(f"no answer within {_TIMEOUT_SECONDS:.0f} s", self._log_tail())
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join(timeout=10)
            raise ContenderError(self._exit_reason(), self._log_tail()) from None
        if kind == "failed":
            raise ContenderError(*content)
        return content

    def _exit_reason(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ": out of memory?" if name == "SIGKILL" else ""
            return f"the process was killed by {name}{hint}"
        return f"the process exited with status {code}"

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        return ""


def _serve(
    spec: ContenderSpec, settings: Settings, log: Path, connection: Connection, other: Connection
) -> None:
    """Run in the contender's process: answer requests until the connection closes."""
    other.close()  # an open copy here would hide that the parent process has ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it
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
    """Return the error's type and first line, without the path of the data set."""
    message = str(error).strip().partition("\n")[0].replace(f"{settings.data}{os.sep}", "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _peak_memory(workers_mib: float) -> dict[str, float]:
    """Return the peak memory by kind, MiB."""
    memory = {"process": _status_kib(os.getpid(), "VmHWM") / 1024}
    if workers_mib:
        memory["loader workers"] = workers_mib
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        memory["GPU"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def resident_mib() -> float:
    """Return this process's memory, MiB."""
    return _status_kib(os.getpid(), "VmRSS") / 1024


def _workers_mib() -> float:
    """Return the private memory of child processes; shared memory counts for this process."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # it has ended
                text = Path(f"/proc/{child}/smaps_rollup").read_text()
                total += sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+)", text, re.M))
    return total / 1024


def _status_kib(pid: int, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None, f"/proc/{pid}/status has no {key}"
    return int(found[1])
