"""A run without a cluster, in a folder of its own: settings, checkpoints, metrics, report."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from determined import pytorch
from rich.console import Console

from cocodata.files import write_atomically
from cocodata.format.manifest import read_manifest
from cocodata.text import duration
from experiments.checkpoints.contents import CheckpointError, verify_digests
from experiments.checkpoints.detectors import trained_categories
from experiments.checkpoints.local import LocalCheckpoints
from experiments.checkpoints.numerics import read_numerics
from experiments.evaluation.loop import Evaluation
from experiments.runtime import provenance
from experiments.runtime.communication import compute_on_chief, start_distributed
from experiments.settings.experiment import ExperimentConfig
from experiments.settings.hparams import HParams, as_dict, changed_from_default
from experiments.training.detector import random_backbone_notice
from experiments.training.run import Run, StartingPoint, describe_numerics
from reporting.tables import metrics_table

_STARTED = "run.json"
_FINISHED = "summary.json"
# Settings that may differ between the parts of one run, since no batch or weight depends on them.
_FREE = {"input_threads", "eval_batch_size"}
# Settings that are compared as each checkpoint's numerics, which say what they came to.
_NUMERICS = {
    *("amp_dtype", "compile", "deterministic", "input_device", "hardware_decoder"),
    "sync_bn_with_horovod",
}


class RunError(RuntimeError):
    """A run folder that this run cannot use; the message says why and what to do."""


class LocalRun:
    """The run in a folder. The folder keeps its record, and only the first rank needs to have it.

    Args:
        config: the run's settings.
        folder: its folder, an absolute path.
        fresh: delete an earlier run in the folder.
        skip_damaged: resume from the newest valid checkpoint, even if newer ones are damaged.
        other_numerics: resume even if weights would be computed in another way than before.
    """

    searched_trial: int | None = None

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        *,
        fresh: bool,
        skip_damaged: bool,
        other_numerics: bool,
    ) -> None:
        self.config = config
        self.folder: Path = folder
        self._fresh = fresh
        self._skip_damaged = skip_damaged
        self._other_numerics = other_numerics
        self._start = StartingPoint()
        self._began = time.monotonic()

    @contextmanager
    def open(self) -> Iterator[pytorch.PyTorchTrialContext]:
        """Join the other ranks, and point Determined to the run's folder.

        Raises:
            RunError: the folder contains another run, or something else.
            CheckpointError: the newest checkpoint is damaged.
        """
        distributed = start_distributed()
        self._start = compute_on_chief(distributed, self._find_start)
        os.environ["XDG_DATA_HOME"] = str(LocalCheckpoints(self.folder).data_home)
        # Determined copies the working directory into each checkpoint: give it an empty one.
        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        os.chdir(work)
        with pytorch.init(
            hparams=as_dict(self.config.hparams),
            exp_conf=dict(self.config.raw),
            distributed=distributed,
            enable_tensorboard_logging=False,  # the run's record writes it
        ) as context:
            yield context

    def starting_point(self, context: pytorch.PyTorchTrialContext) -> StartingPoint:
        """The newest checkpoint in the folder, found when the run was opened."""
        if self._start.finished and context.distributed.get_rank() == 0:
            print(f"this run is finished: see {self.folder}, or give --fresh to train it again")
        return self._start

    def _find_start(self) -> StartingPoint:
        if self._fresh:
            _delete_run(self.folder)
        if not self._require_same_run():
            return StartingPoint()
        finished = (self.folder / _FINISHED).is_file()
        saved = LocalCheckpoints(self.folder)
        for checkpoint in reversed(saved.all()):
            try:
                verify_digests(saved.folder(checkpoint))
            except CheckpointError as error:
                if not self._skip_damaged:
                    raise CheckpointError(
                        f"{error}. --skip-damaged goes back to the newest valid one"
                    ) from error
                print(f"skipping the checkpoint of batch {checkpoint.batches}: {error}", flush=True)
                continue
            folder = saved.folder(checkpoint)
            return StartingPoint(
                checkpoint.uuid,
                checkpoint.batches,
                finished,
                read_numerics(folder) or _numerics_of(self._record()),
                trained_categories(folder),
            )
        return StartingPoint(finished=finished)

    def _require_same_run(self) -> bool:
        """Check that the folder contains this run; False if it is empty or missing."""
        started = self.folder / _STARTED
        if not started.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise RunError(
                    f"{self.folder}: is not empty and not a run; give an empty or new folder"
                )
            return False
        before = self._record()["identity"]
        now = json.loads(json.dumps(_identity(self.config)))
        # A run from before there was a setting was as it is by default.
        before = {**as_dict(HParams()), **before}
        changed = [
            f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
            for name in sorted(now)
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise RunError(
                f"{self.folder}: contains a run with other settings ({'; '.join(changed)}); give "
                "another folder (--out), or --fresh to delete that run"
            )
        return True

    def _record(self) -> dict[str, Any]:
        """The content of run.json; nothing if the run has not begun."""
        file = self.folder / _STARTED
        content: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return content

    def accept(self, start: StartingPoint, changed: Sequence[str]) -> None:
        """Refuse to resume if weights would be computed in another way, unless told otherwise.

        Raises:
            RunError: they would.
        """
        if changed and not self._other_numerics:
            raise RunError(
                f"{self.folder}: the checkpoint of batch {start.batches} was computed in another "
                f"way ({'; '.join(changed)}), so weights would not be those of an unchanged run; "
                "restore the settings (and the kind of device), or give --other-numerics to go on, "
                "which run.json then records"
            )

    def begin(self, context: pytorch.PyTorchTrialContext, run: Run) -> None:
        """Record what the run is, and delete what a kill left incomplete."""
        LocalCheckpoints(self.folder).remove_unlisted()
        manifest = read_manifest(self.config.data)
        changes = self._record().get("changes", [])
        if changed := run.changed_numerics:
            changes.append({"batches": run.first_batch, "changed": changed})
        content = {
            "identity": _identity(self.config),
            "config": dict(self.config.raw),
            "data_version": manifest.version if manifest is not None else None,
            "images": {run.train.name: len(run.train), run.val.name: len(run.val)},
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "precision": run.numerics.precision,
            "decoder": run.numerics.decoder,
            "changes": changes,
        }
        write_atomically(self.folder / _STARTED, json.dumps(content, indent=1))
        self._began = time.monotonic()
        print(_opening_lines(run), flush=True)

    def finish(self, run: Run, evaluate: Callable[[], Evaluation]) -> None:
        """Write the summary and the report, and print where they are."""
        # Imported here because it imports matplotlib, which no run needs before its end.
        from experiments.evaluation.report import sample_pictures, write_report

        seconds = time.monotonic() - self._began
        saved = LocalCheckpoints(self.folder)
        best = saved.best()
        if best is None:
            raise RunError(f"{self.folder}: the run ended without a checkpoint; was one deleted?")
        summary = {
            "batches": run.total_batches,
            "seconds": seconds,
            "best_checkpoint": str(saved.folder(best).relative_to(self.folder)),
            "best_batches": best.batches,
        }
        write_atomically(self.folder / _FINISHED, json.dumps(summary, indent=1))
        evaluation = evaluate()
        report = write_report(
            self.folder,
            pictures=sample_pictures(run.val, evaluation.detections),
            names=run.val.categories.name_of,
        )
        Console().print(metrics_table(evaluation.result.metrics))
        print(
            f"finished: {run.total_batches} batches, {duration(seconds)} in this process\n"
            f"the report is {report}",
            flush=True,
        )


def _delete_run(folder: Path) -> None:
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / _STARTED).is_file():
        raise RunError(f"{folder}: is not the folder of a run and was not deleted; give another")
    shutil.rmtree(folder)


def _numerics_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the numerics of a run whose checkpoints do not keep them."""
    settings = record["identity"]
    known = {name: record[name] for name in ("decoder",) if name in record}
    if {"amp", "amp_dtype"} <= settings.keys():
        known["precision"] = settings["amp_dtype"] if settings["amp"] else "float32"
    return known


def _identity(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that make two runs the same run."""
    kept = {
        name: value
        for name, value in as_dict(config.hparams).items()
        if name not in _FREE | _NUMERICS
    }
    periods = {
        "min_validation_period": vars(config.validation_period),
        "scheduling_unit": config.reporting_batches,
    }
    return {**kept, **periods, "data": str(config.data)}


def _opening_lines(run: Run) -> str:
    hparams = run.config.hparams
    start = f"resuming at batch {run.first_batch}" if run.first_batch else "starting"
    lines = [
        f"{start}: {hparams.model} on {run.config.data} ({len(run.train)} training, "
        f"{len(run.val)} validation images), {run.total_batches} batches of "
        f"{hparams.global_batch_size} over {run.communicator.size} rank(s)",
        f"hyperparameters: {json.dumps(changed_from_default(hparams))}",
    ]
    lines += describe_numerics(run)
    notice = random_backbone_notice(hparams)
    if notice and not run.first_batch:
        lines.append(notice)
    return "\n".join(lines)
