"""What a run of the check does: its device, sizes and parts."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_check.results import FAILED, LEFT_OUT, Row
from bench.measuring import ContenderSpec, Device, Measurement, Settings
from bench.process import ContenderError, ContenderProcess

NO_TIME = "no time is left (MINUTES=)"

Report = Callable[[Row], None]
"""Takes a row as soon as it is known."""


@dataclass(frozen=True)
class Plan:
    """The device and the sizes of everything.

    Attributes:
        device: The device that is checked.
        settings: Detector, sizes and threads; each part sets its batch size and its data.
        data: The user's data set, for the speed of input and evaluation; None: the generated one.
        batch_sizes: Images in a batch, for the speed of training.
        seconds: Length of one measurement of speed.
        deadline: time.monotonic() after which nothing more is started.
        rates: Images/s of training by batch size, as soon as they have been measured.
    """

    device: Device
    settings: Settings
    data: Path | None
    batch_sizes: tuple[int, ...]
    seconds: float
    deadline: float
    rates: dict[int, float] = field(default_factory=dict)

    def with_batch(self, size: int) -> Settings:
        """Return the settings for a batch size on the device."""
        return dataclasses.replace(self.settings, batch_size=size, gpu_batch_size=size)

    @property
    def seconds_left(self) -> float:
        """Time until the deadline."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Part:
    """A part of the check, which can be asked for alone.

    Attributes:
        name: Its name on the command line.
        title: What it does.
        seconds: About how long it takes on a GPU, and on a processor.
        run: Reports its rows.
        needs: Modules without which it is left out.
        gpu_only: Why it is left out on a processor; empty if it is not.
    """

    name: str
    title: str
    seconds: tuple[float, float]
    run: Callable[[Plan, Report], None]
    needs: tuple[str, ...] = ()
    gpu_only: str = ""

    def expected_seconds(self, device: Device) -> float:
        """Return about how long it takes on a device."""
        return self.seconds[device == "cpu"]

    def why_left_out(self, plan: Plan) -> str | None:
        """Return why the part cannot run, or None if it can."""
        missing = [name for name in self.needs if not _is_installed(name)]
        if missing:
            return f"needs {', '.join(missing)}, which is not installed"
        if plan.device == "cpu" and self.gpu_only:
            return self.gpu_only
        if plan.seconds_left <= 0:
            return NO_TIME
        return None


def run_part(part: Part, plan: Plan, report: Report) -> None:
    """Run a part, or say why it is left out; an error in it is a failure of this part alone."""
    reason = part.why_left_out(plan)
    if reason is not None:
        report(Row(part.name, part.title, LEFT_OUT, detail=reason))
        return
    try:
        part.run(plan, report)
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        report(Row(part.name, part.title, FAILED, detail=f"{type(error).__name__}: {said}"))


@contextmanager
def contender(target: str, settings: Settings, **options: Any) -> Iterator[ContenderProcess]:
    """Start something that measures in a process of its own.

    What a process does to a GPU's memory, or an error that ends its use of the GPU, says nothing
    about the next one.
    """
    spec = ContenderSpec(target, "ours", target, options)
    log = settings.scratch / f"{time.monotonic_ns()}.log"
    process = ContenderProcess(spec, settings, log)
    try:
        yield process
    finally:
        process.close()


def measure_once(target: str, settings: Settings, **options: Any) -> Measurement:
    """Measure once, without a warm-up of its own.

    Raises:
        ContenderError: It failed; `summary` says why in one line.
    """
    with contender(target, settings, **options) as process:
        process.wait_until_built()
        process.warm_up()
        return process.measure(0.0)


def failure(part: str, name: str, error: ContenderError) -> Row:
    """Create the row of something that failed; too little memory is no defect."""
    if "OutOfMemoryError" in error.summary or "CUDA out of memory" in error.summary:
        return Row(part, name, LEFT_OUT, detail="out of memory")
    return Row(part, name, FAILED, detail=error.summary)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def select(parts: Sequence[Part], names: str) -> list[Part]:
    """Return the parts of these names, separated by commas, in the usual order; '' means all.

    Raises:
        ValueError: There is no part of that name.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = sorted(wanted - {part.name for part in parts})
    if unknown:
        known = ", ".join(part.name for part in parts)
        raise ValueError(f"unknown part {', '.join(unknown)}; choose from {known}")
    return [part for part in parts if not wanted or part.name in wanted]
