"""The parts that measure: speed of training, input and evaluation, and memory."""

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING, Any

from bench.data import data_folder
from bench.gpu_check.limits import COMPILED, EVALUATION, GROWTH, INPUT
from bench.gpu_check.plan import NO_TIME, Plan, Report, contender, failure, measure_once
from bench.gpu_check.results import LEFT_OUT, Limit, Row, measured
from bench.measuring import Settings
from bench.process import ContenderError

if TYPE_CHECKING:
    from bench.contenders.ours import Mode

_UNIT = "images/s"
# Each is compared with the one before it.
_MODES: "tuple[Mode, ...]" = ("eager", "default", "compiled", "graphs")
_NO_COMPILER = "not possible: no C compiler"


def has_compiler() -> bool:
    """Return whether there is a C compiler, which Triton needs to start."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang"))


def training(plan: Plan, report: Report) -> None:
    """Measure training steps on a generated batch, by batch size and by what is compiled."""
    for size in plan.batch_sizes:
        slower = 0.0
        for mode in _MODES if plan.device == "cuda" else _MODES[:1]:
            row = Row("training", f"{mode}, batch {size}", LEFT_OUT)
            if mode != "eager" and not has_compiler():
                report(dataclasses.replace(row, detail=_NO_COMPILER))
                continue
            if plan.seconds_left <= 0:
                report(dataclasses.replace(row, detail=NO_TIME))
                continue
            limit = COMPILED.times(slower) if slower else None
            settings = plan.with_batch(size)
            row, rate = _rate(plan, row, settings, "Training", limit=limit, mode=mode)
            report(row)
            slower = rate or slower
            if mode in ("eager", "default") and rate:
                plan.rates[size] = rate


def images(plan: Plan, report: Report) -> None:
    """Measure the input pipeline, for training and for evaluation."""
    size = plan.batch_sizes[-1]
    settings = dataclasses.replace(plan.with_batch(size), data=data_folder(plan.data))
    trained = plan.rates.get(size) if plan.device == "cuda" else None
    for kind in (True, False):
        row = Row("input", f"{'training' if kind else 'evaluation'} input, batch {size}", LEFT_OUT)
        limit = INPUT.times(trained) if trained and kind else None
        report(_rate(plan, row, settings, "Input", limit=limit, training=kind)[0])


def evaluation(plan: Plan, report: Report) -> None:
    """Measure evaluation from files to detections."""
    size = plan.batch_sizes[0]
    settings = dataclasses.replace(plan.with_batch(size), data=data_folder(plan.data))
    trained = plan.rates.get(size) if plan.device == "cuda" else None
    row = Row("evaluation", f"from files to detections, batch {size}", LEFT_OUT)
    limit = EVALUATION.times(trained) if trained else None
    report(_rate(plan, row, settings, "Evaluation", limit=limit)[0])


def memory(plan: Plan, report: Report) -> None:
    """Check that memory does not grow from step to step."""
    size = plan.batch_sizes[0]
    mode = "default" if plan.device == "cuda" and has_compiler() else "eager"
    settings, target = plan.with_batch(size), "bench.gpu_check.memory:Growth"
    try:
        found = measure_once(target, settings, device=plan.device, mode=mode).outcome
    except ContenderError as error:
        report(failure("memory", f"{mode}, batch {size}", error))
        return
    report(measured("memory", f"in use after ten steps, batch {size}", found["used"], unit="MiB"))
    report(
        measured(
            "memory",
            "growth in 40 more steps",
            found["growth"],
            unit="MiB",
            limit=GROWTH[plan.device],
        )
    )


def _rate(
    plan: Plan, row: Row, settings: Settings, loop: str, *, limit: Limit | None, **options: Any
) -> tuple[Row, float | None]:
    """Measure a rate in a process of its own; return its row, and the rate if there is one."""
    target = f"bench.contenders.ours:{loop}"
    try:
        with contender(target, settings, device=plan.device, **options) as process:
            process.wait_until_built()
            process.warm_up()
            done = process.measure(plan.seconds)
            memory_mib = process.finish()
    except ContenderError as error:
        return failure(row.part, row.name, error), None
    rate = done.work / done.seconds
    peak = memory_mib.get("GPU", memory_mib["process"])
    detail = f"peak memory {peak:,.0f} MiB"
    return measured(row.part, row.name, rate, unit=_UNIT, limit=limit, detail=detail), rate
