"""The folder of a run without a cluster: what it was started with, where it is, how it ended."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cocodata import Split
from cocodata.files import write_atomically
from cocodata.format.manifest import read_manifest
from cocodata.text import duration
from experiments.checkpoints.contents import CheckpointError, verify_digests
from experiments.checkpoints.local import LocalCheckpoints, SavedCheckpoint
from experiments.evaluation.report import sample_pictures, write_report
from experiments.runtime import provenance
from experiments.settings.experiment import ExperimentConfig
from experiments.settings.hparams import as_dict
from reporting.tables import metrics_table

if TYPE_CHECKING:
    from experiments.training.trial import EfficientDetTrial

_STARTED = "run.json"
_FINISHED = "summary.json"
# What may change between the parts of one run, since no batch or weight depends on it.
_FREE = {"input_threads", "input_device", "pin_mem", "compile", "eval_batch_size"}


class RunError(RuntimeError):
    """A run folder that this run cannot use; the message says why and what to do."""


def checkpoints(out: Path) -> LocalCheckpoints:
    """The checkpoints of the run in a folder."""
    return LocalCheckpoints(out)


def remove(out: Path) -> None:
    """Delete an earlier run.

    Raises:
        RunError: the folder holds something else.
    """
    if not out.exists():
        return
    if any(out.iterdir()) and not (out / _STARTED).is_file():
        raise RunError(f"{out}: is not the folder of a run, so it is not deleted; give another one")
    shutil.rmtree(out)


def with_absolute_paths(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with paths that stay right when the working directory changes."""
    data = dict(raw.get("data") or {})
    if data.get("path"):
        data["path"] = str(Path(data["path"]).resolve())
    hyperparameters = dict(raw.get("hyperparameters") or {})
    for name in ("weights", "backbone_weights"):
        value = hyperparameters.get(name)
        # A published checkpoint may be named without a path.
        if isinstance(value, str) and Path(value).exists():
            hyperparameters[name] = str(Path(value).resolve())
    return {**raw, "data": data, "hyperparameters": hyperparameters}


def is_finished(out: Path) -> bool:
    """Whether the run in the folder came to its end."""
    return (out / _FINISHED).is_file()


def _identity(config: ExperimentConfig) -> dict[str, Any]:
    """What makes two runs the same run."""
    kept = {name: value for name, value in as_dict(config.hparams).items() if name not in _FREE}
    periods = {
        "min_validation_period": vars(config.validation_period),
        "scheduling_unit": config.reporting_batches,
    }
    return {**kept, **periods, "data": str(config.data)}


def resume_point(
    out: Path, config: ExperimentConfig, *, skip_damaged: bool
) -> SavedCheckpoint | None:
    """The checkpoint to go on from; None to begin.

    Args:
        out: the run's folder.
        config: what the run is to be.
        skip_damaged: go back past damaged checkpoints to the newest sound one.

    Raises:
        RunError: the folder holds another run, or something else.
        CheckpointError: the newest checkpoint is damaged; the message names the file.
    """
    started = out / _STARTED
    if not started.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise RunError(f"{out}: is not empty and not a run; give an empty or new folder")
        return None
    before = json.loads(started.read_text(encoding="utf-8"))["identity"]
    now = json.loads(json.dumps(_identity(config)))
    changed = [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise RunError(
            f"{out}: holds a run with other settings ({'; '.join(changed)}); give another folder "
            "(--out), or --fresh to delete that run"
        )
    saved = LocalCheckpoints(out)
    for checkpoint in reversed(saved.all()):
        try:
            verify_digests(saved.folder(checkpoint))
        except CheckpointError as error:
            if not skip_damaged:
                raise CheckpointError(
                    f"{error}. --skip-damaged goes back to the newest sound one"
                ) from error
            print(f"skipping the checkpoint of batch {checkpoint.batches}: {error}", flush=True)
            continue
        return checkpoint
    return None


def begin(out: Path, config: ExperimentConfig, train: Split, val: Split) -> None:
    """Write down what the run is, before its first batch; clear away what a kill left half-done."""
    out.mkdir(parents=True, exist_ok=True)
    LocalCheckpoints(out).remove_unlisted()
    content = {
        "identity": _identity(config),
        "config": dict(config.raw),
        "data_version": _data_version(config.data),
        "images": {train.name: len(train), val.name: len(val)},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    write_atomically(out / _STARTED, json.dumps(content, indent=1))


def _data_version(data: Path) -> str | None:
    manifest = read_manifest(data)
    return manifest.version if manifest is not None else None


def finish(out: Path, trial: "EfficientDetTrial", seconds: float) -> None:
    """Write the summary and the report of a run that reached its last batch, and say where."""
    saved = LocalCheckpoints(out)
    best = saved.best()
    if best is None:
        raise RunError(f"{out}: the run ended without a checkpoint; was one deleted?")
    summary = {
        "batches": trial.position,
        "seconds": seconds,
        "best_checkpoint": str(saved.folder(best).relative_to(out)),
        "best_batches": best.batches,
    }
    write_atomically(out / _FINISHED, json.dumps(summary, indent=1))
    evaluation = trial.last_evaluation()
    report = write_report(
        out,
        pictures=sample_pictures(trial.run.val, evaluation.detections),
        names=trial.run.val.categories.name_of,
    )
    Console().print(metrics_table(evaluation.result.metrics))
    print(
        f"finished: {trial.position} batches, {duration(seconds)} in this process\n"
        f"look at {report}",
        flush=True,
    )
