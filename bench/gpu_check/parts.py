"""The parts of the check, in the order in which they run: the cheap and telling ones first."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from bench.gpu_check import speed
from bench.gpu_check.limits import DECODED, NEIGHBOURS, PARITY, TRUNCATED
from bench.gpu_check.plan import Part, Plan, Report, failure, measure_once
from bench.gpu_check.results import FAILED, LEFT_OUT, OK, Row, measured
from bench.process import ContenderError

ROOT = Path(__file__).resolve().parents[2]
_TESTS = ("tests/experiments", "tests/model")
_LEAST_SECONDS = 60.0
_MODEL = ("timm", "torchvision", "pydantic")
_DALI, _DETERMINED = "nvidia.dali", "determined"
_NEIGHBOURS = "alone and in a batch"
_VERDICTS = {True: OK, False: FAILED, None: LEFT_OUT}


def machine(_plan: Plan, report: Report) -> None:
    """Check driver, products, JPEGs, NCCL and Docker, as cluster-doctor does on hosts."""
    from cluster.gpu_check import Step, check_gpus  # needs Determined

    def done(step: Step) -> None:
        report(Row("machine", step.name, _VERDICTS[step.ok], detail=step.detail))

    check_gpus(done)


def parity(plan: Plan, report: Report) -> None:
    """Compare the detector's arithmetic with the processor's."""
    # Deep detectors with random weights amplify rounding until nothing can be told: they are
    # compared in float32 only.
    small = dataclasses.replace(plan.settings, model="tiny", image_size=128)
    cases = [(small, False)]
    if plan.settings.model != small.model:
        cases.append((plan.settings, True))
    for settings, full_only in cases:
        options = {"device": plan.device, "full_only": full_only}
        try:
            found = measure_once("bench.gpu_check.parity:Parity", settings, **options).outcome
        except ContenderError as error:
            report(failure("parity", settings.model, error))
            continue
        for name, value in found.items():
            result, _, precision = name.partition(", ")
            limit = PARITY.get((result, precision))
            report(measured("parity", f"{name}, {settings.model}", value, limit=limit))


def tests(plan: Plan, report: Report) -> None:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *_TESTS]
    try:
        run = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=max(plan.seconds_left, _LEAST_SECONDS),
        )
    except subprocess.TimeoutExpired as error:
        report(Row("tests", "marked gpu", FAILED, detail=f"not done after {error.timeout:.0f} s"))
        return
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines() or ["no output"]
    wrong = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    verdict = FAILED if run.returncode else OK
    report(Row("tests", "marked gpu", verdict, detail="; ".join([lines[-1].strip("= "), *wrong])))


def decode(plan: Plan, report: Report) -> None:
    """Decode ordinary and odd JPEGs."""
    target = "bench.gpu_check.decoding:Decoding"
    try:
        found = measure_once(target, plan.settings, device=plan.device).outcome
    except ContenderError as error:
        report(failure("decode", "JPEGs", error))
        return
    for kind, value in found.items():
        if kind == "truncated":
            report(measured("decode", "a truncated file is named", value, limit=TRUNCATED))
        else:
            limit = NEIGHBOURS if kind == _NEIGHBOURS else DECODED
            report(measured("decode", kind, value, unit="of 255", limit=limit))


PARTS = (
    Part(
        "machine",
        "driver, products, JPEGs, NCCL, Docker",
        (60.0, 0.0),
        machine,
        needs=(_DETERMINED,),
        gpu_only="no GPU is used",
    ),
    Part(
        "parity",
        "targets, logits, loss, gradient and detections as on the processor",
        (30.0, 15.0),
        parity,
        needs=_MODEL,
    ),
    Part("decode", "JPEGs as Pillow decodes them", (15.0, 15.0), decode, needs=(*_MODEL, _DALI)),
    Part("training", "speed of training steps", (240.0, 40.0), speed.training, needs=_MODEL),
    Part("input", "speed of input", (25.0, 30.0), speed.images, needs=(*_MODEL, _DALI)),
    Part(
        "evaluation", "speed of evaluation", (15.0, 15.0), speed.evaluation, needs=(*_MODEL, _DALI)
    ),
    Part("memory", "memory does not grow", (30.0, 20.0), speed.memory, needs=_MODEL),
    Part(
        "tests",
        "the tests that need a GPU",
        (60.0, 0.0),
        tests,
        needs=("pytest", _DALI, _DETERMINED),
        gpu_only="no GPU is used",
    ),
)
