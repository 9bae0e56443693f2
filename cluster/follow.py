"""Follows an experiment until it ends: its trials' logs, their states, and how it ended."""

import datetime
import threading
import time

import requests
from determined.common import api
from determined.common.api import bindings
from determined.experimental import Determined
from determined.experimental.client import ExperimentState
from rich.console import Console

from cluster.connection import MasterConnection, explained
from cluster.errors import ClusterError
from cocodata.text import duration

_POLL_SECONDS = 2.0
# A master that restarts is back in seconds; one that is away for longer is worth a person's look.
_PATIENCE_SECONDS = 300.0
_ENDED = (
    ExperimentState.COMPLETED,
    ExperimentState.CANCELED,
    ExperimentState.ERROR,
    ExperimentState.DELETED,
)
_TROUBLE = (api.errors.MasterNotFoundException, requests.exceptions.RequestException)


def follow(connection: MasterConnection, experiment_id: int, console: Console) -> None:
    """Print what an experiment does until it ends.

    Raises:
        ClusterError: It ended in another way than COMPLETED, or its master stayed away.
    """
    cluster = connection.login()
    with explained(connection):
        experiment = cluster.get_experiment(experiment_id)
    console.print(f"experiment {experiment_id} ({experiment.name}) on {connection.master}")
    started = time.monotonic()
    printers: dict[int, _LogPrinter] = {}
    shown: dict[int, str] = {}
    state = None
    patience = _Patience(console)
    while True:
        try:
            experiment.reload()
            trials = list(experiment.iter_trials())
        except _TROUBLE as error:
            patience.wait_after(error)
            continue
        patience.answered()
        for trial in trials:
            # The logs of a search's trials at once would be a jumble: only the states are shown.
            single = len(trials) == 1
            if single and trial.id not in printers:
                printers[trial.id] = _LogPrinter(cluster, trial.id, console)
            told = _trial_line(trial)
            if not single and shown.get(trial.id) != told:
                shown[trial.id] = told
                console.print(told, highlight=False)
        if experiment.state != state:
            state = experiment.state
            assert state is not None
            console.print(f"experiment {experiment_id}: {state.value.removeprefix('STATE_')}")
        if state in _ENDED:
            break
        time.sleep(_POLL_SECONDS)
    for printer in printers.values():
        printer.finish()
    taken = duration(time.monotonic() - started)
    name = state.value.removeprefix("STATE_") if state else "unknown"
    if state is not ExperimentState.COMPLETED:
        raise ClusterError(
            f"experiment {experiment_id} ended as {name} after {taken}; the logs are above, and "
            f"in: det -m {connection.master} experiment logs {experiment_id}"
        )
    console.print(f"experiment {experiment_id} COMPLETED in {taken}{_best(experiment)}")


def _trial_line(trial: object) -> str:
    summary = getattr(trial, "summary_metrics", None) or {}
    values = summary.get("validation_metrics") or {}
    metrics = ", ".join(
        f"{name} {values[name]['last']:.4f}"
        for name in ("AP", "AP50")
        if "last" in values.get(name, {})
    )
    state = str(getattr(trial, "state", "")).removeprefix("TrialState.")
    return f"trial {getattr(trial, 'id', '?')}: {state}" + (f", {metrics}" if metrics else "")


def _best(experiment: object) -> str:
    """The best checkpoint's metric, where there is one."""
    try:
        best = experiment.list_checkpoints(max_results=1)  # type: ignore[attr-defined]
    except (ValueError, AssertionError, api.errors.APIException):
        return ""
    if not best or best[0].training is None:
        return ""
    metrics = (best[0].training.validation_metrics or {}).get("avgMetrics") or {}
    value = f", AP {metrics['AP']:.4f}" if "AP" in metrics else ""
    return f"; best checkpoint {best[0].uuid}{value}"


class _Patience:
    """Bears with a master that restarts, and not with one that stays away."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._since: float | None = None

    def answered(self) -> None:
        if self._since is not None:
            self._console.print("the master answers again")
        self._since = None

    def wait_after(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._console.print("the master does not answer; trials go on without it; waiting")
        elif time.monotonic() - self._since > _PATIENCE_SECONDS:
            raise ClusterError(
                f"the master has not answered for {duration(_PATIENCE_SECONDS)} ({error}). The "
                "experiment may still run: look at the master, then follow it again"
            ) from error
        time.sleep(_POLL_SECONDS)


class _LogPrinter:
    """Prints a trial's logs as they come, over restarts of the master."""

    def __init__(self, cluster: Determined, trial_id: int, console: Console) -> None:
        self._session = cluster._session
        self._trial = trial_id
        self._console = console
        self._seen: set[str] = set()
        self._last: datetime.datetime | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the end of the logs, which may come a little after the trial's."""
        self._ended.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        while True:
            last_round = self._ended.is_set()
            try:
                for entry in bindings.get_TrialLogs(
                    self._session,
                    trialId=self._trial,
                    follow=not last_round,
                    timestampAfter=self._last.isoformat() if self._last else None,
                ):
                    self._print(entry)
            except (*_TROUBLE, api.errors.APIException):
                pass  # the next round asks for what this one missed
            if last_round:
                return
            # A stream also ends where a trial is paused: the master is not asked without a rest.
            self._ended.wait(_POLL_SECONDS)

    def _print(self, entry: bindings.v1TrialLogsResponse) -> None:
        if entry.id in self._seen:
            return
        self._seen.add(entry.id)
        # Asked for again from a little before: equal times must not lose lines.
        stamp = datetime.datetime.fromisoformat(entry.timestamp.replace("Z", "+00:00"))
        self._last = stamp - datetime.timedelta(seconds=1)
        text = (entry.log or entry.message).rstrip("\n")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
