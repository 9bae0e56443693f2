"""Follows an experiment until it ends: prints trials' logs and states, and the result."""

import datetime
import threading
import time
from collections.abc import Iterable

import requests
from determined.common import api
from determined.common.api import bindings
from determined.experimental import Determined
from determined.experimental.client import ExperimentState, Trial
from rich.console import Console

from cluster.connection import MasterConnection, translate_errors
from cluster.errors import ClusterError
from cocodata.text import duration
from experiments.runtime.determined_internals import session_of

# How often the experiment's state is requested: its end is noticed this late.
_STATE_SECONDS = 0.5
# How often its trials are requested, once there are any, and all else is tried again.
_POLL_SECONDS = 2.0
# A restarting master is back within seconds; after this long, somebody should look at it.
_MAX_OUTAGE_SECONDS = 300.0
_FINAL_STATES = (
    ExperimentState.COMPLETED,
    ExperimentState.CANCELED,
    ExperimentState.ERROR,
    ExperimentState.DELETED,
)
_CONNECTION_ERRORS = (api.errors.MasterNotFoundException, requests.exceptions.RequestException)
_STREAM_ERRORS = (*_CONNECTION_ERRORS, api.errors.APIException)


def follow(connection: MasterConnection, experiment_id: int, console: Console) -> None:
    """Print an experiment's logs or trial states until it ends.

    Raises:
        ClusterError: It ended in a state other than COMPLETED, or the master stayed unreachable.
    """
    cluster = connection.login()
    with translate_errors(connection):
        experiment = cluster.get_experiment(experiment_id)
    console.print(f"experiment {experiment_id} ({experiment.name}) on {connection.master}")
    started = time.monotonic()
    printers: dict[int, _LogPrinter] = {}
    printed: dict[int, str] = {}
    state = None
    trials: list[Trial] = []
    next_trials = started
    outage = _Outage(console)
    while True:
        try:
            experiment.reload()
            if not trials or time.monotonic() >= next_trials or experiment.state in _FINAL_STATES:
                trials = list(experiment.iter_trials())
                next_trials = time.monotonic() + _POLL_SECONDS
        except _CONNECTION_ERRORS as error:
            outage.wait_after(error)
            continue
        outage.end()
        for trial in trials:
            # Logs of several trials would be interleaved, so for a search print only their states.
            single = len(trials) == 1
            if single and trial.id not in printers:
                printers[trial.id] = _LogPrinter(cluster, trial.id, console)
            line = _trial_line(trial)
            if not single and printed.get(trial.id) != line:
                printed[trial.id] = line
                console.print(line, highlight=False)
        if experiment.state != state:
            state = experiment.state
            assert state is not None
            console.print(f"experiment {experiment_id}: {state.value.removeprefix('STATE_')}")
        if state in _FINAL_STATES:
            break
        time.sleep(_STATE_SECONDS)
    for printer in printers.values():
        printer.finish()
    elapsed = duration(time.monotonic() - started)
    name = state.value.removeprefix("STATE_") if state else "unknown"
    if state is not ExperimentState.COMPLETED:
        raise ClusterError(
            f"experiment {experiment_id} ended as {name} after {elapsed}. See the logs above or: "
            f"det -m {connection.master} experiment logs {experiment_id}"
        )
    console.print(f"experiment {experiment_id} COMPLETED in {elapsed}{_best(experiment)}")


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
    """Format the best checkpoint and its AP; empty if there is no checkpoint."""
    try:
        best = experiment.list_checkpoints(max_results=1)  # type: ignore[attr-defined]
    except (ValueError, AssertionError, api.errors.APIException):
        return ""
    if not best or best[0].training is None:
        return ""
    metrics = (best[0].training.validation_metrics or {}).get("avgMetrics") or {}
    value = f", AP {metrics['AP']:.4f}" if "AP" in metrics else ""
    return f"; best checkpoint {best[0].uuid}{value}"


class _Outage:
    """Waits out a master restart, up to a time limit."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._since: float | None = None

    def end(self) -> None:
        if self._since is not None:
            self._console.print("the master answers again")
        self._since = None

    def wait_after(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._console.print(
                "the master does not answer; waiting for it (trials keep running meanwhile)"
            )
        elif time.monotonic() - self._since > _MAX_OUTAGE_SECONDS:
            raise ClusterError(
                f"the master has not answered for {duration(_MAX_OUTAGE_SECONDS)} ({error}). The "
                "experiment may still be running: check the master, then follow it again"
            ) from error
        time.sleep(_POLL_SECONDS)


class _LogPrinter:
    """Prints a trial's logs as they arrive, and reconnects if the master restarts."""

    def __init__(self, cluster: Determined, trial_id: int, console: Console) -> None:
        self._session = session_of(cluster)
        self._trial = trial_id
        self._console = console
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._last: datetime.datetime | None = None
        self._ended = False
        threading.Thread(target=self._follow, daemon=True).start()

    def finish(self) -> None:
        """Print what is left, after the trial's end.

        The stream does not say so: the master keeps it open for 5 s, in case that logs come late.
        A trial's container sends all of its lines before it ends.
        """
        with self._lock:
            self._ended = True  # the thread prints nothing more, and ends with this process
        for _ in range(2):
            try:
                for entry in self._request(follow=False):
                    self._print(entry)
                return
            except _STREAM_ERRORS:
                time.sleep(_POLL_SECONDS)

    def _follow(self) -> None:
        while True:
            try:
                for entry in self._request(follow=True):
                    with self._lock:
                        if self._ended:
                            return
                        self._print(entry)
            except _STREAM_ERRORS:
                pass  # the next request is for what this one missed
            if self._ended:
                return
            # The stream also ends when a trial is paused: do not poll without a break.
            time.sleep(_POLL_SECONDS)

    def _request(self, *, follow: bool) -> Iterable[bindings.v1TrialLogsResponse]:
        return bindings.get_TrialLogs(
            self._session,
            trialId=self._trial,
            follow=follow,
            timestampAfter=self._last.isoformat() if self._last else None,
        )

    def _print(self, entry: bindings.v1TrialLogsResponse) -> None:
        if entry.id in self._seen:
            return
        self._seen.add(entry.id)
        # The next request overlaps by a second, so as not to lose lines with equal timestamps.
        stamp = datetime.datetime.fromisoformat(entry.timestamp.replace("Z", "+00:00"))
        self._last = stamp - datetime.timedelta(seconds=1)
        text = (entry.log or entry.message).rstrip("\n")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
