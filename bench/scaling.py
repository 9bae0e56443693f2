"""How speed grows with the number of ranks: what is measured, and its table and plot."""

import importlib.util
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.comparing import Comparison
from bench.measuring import ContenderSpec, Settings
from reporting.plots import COLORS

NAME = "scaling"
_ROOT = Path(__file__).resolve().parent.parent
_MOST_RANKS = 8
_COLUMNS = ("ranks", "sync_bn", "images/s", "spread", "of ideal", "kept", "speed-up")
SCALING_NOTE = (
    "Of ideal: the share of N times the speed of one rank. Kept: the share of the speed without "
    "sync_bn. Speed-up: over the code of the baseline."
)


@dataclass(frozen=True)
class _Case:
    """One way to train: the options of its contender.

    Attributes:
        launcher: torchrun or horovodrun; None for a single process.
        ranks: Number of processes.
        sync_bn: Whether batch norm is synchronized.
        through_horovod: Whether its statistics are sent by Horovod.
        revision: Commit whose code is trained; None for this one.
    """

    launcher: str | None
    ranks: int
    sync_bn: bool = False
    through_horovod: bool = False
    revision: str | None = None

    @property
    def name(self) -> str:
        """Return what progress and errors call it."""
        parts = [f"{self.ranks} ranks of {self.launcher}" if self.launcher else "1 rank"]
        parts += ["sync_bn"] * self.sync_bn + ["all through Horovod"] * self.through_horovod
        return ", ".join([*parts, *([self.revision] if self.revision else [])])

    def spec(self) -> ContenderSpec:
        """Return the contender that measures it."""
        hparams: dict[str, Any] = {"sync_bn": self.sync_bn}
        if self.through_horovod:
            hparams["sync_bn_with_horovod"] = True
        options: dict[str, Any] = {"launcher": self.launcher, "ranks": self.ranks}
        options |= {"hparams": hparams, "revision": self.revision}
        return ContenderSpec(self.name, "reference", "bench.contenders.ranks:Ranks", options)


def scaling(baseline: str | None = None) -> Comparison:
    """Return the comparison of all numbers of ranks, launchers and kinds of batch norm.

    Args:
        baseline: A commit whose code is also measured, with synchronized batch norm.

    Raises:
        ValueError: There is no such commit.
    """
    if baseline:
        baseline = _short_hash(baseline)
    return Comparison(
        NAME,
        "Training on several ranks, with equal batches of generated images for each",
        "images/s",
        tuple(case.spec() for case in _cases(_rank_counts(), _launchers(), baseline)),
        prepare=(lambda settings: _unpack(baseline, settings)) if baseline else None,
        seconds=20.0,  # a run, however long a measurement should be
    )


def _launchers() -> list[str]:
    has_horovod = importlib.util.find_spec("horovod") is not None
    return ["torchrun", *(["horovodrun"] if has_horovod else [])]


def _cases(
    counts: Sequence[int], launchers: Sequence[str], baseline: str | None
) -> Iterator[_Case]:
    yield _Case(None, 1)
    for launcher in launchers:
        for ranks in counts:
            yield _Case(launcher, ranks)
            yield _Case(launcher, ranks, sync_bn=True)
            if launcher == "horovodrun":
                yield _Case(launcher, ranks, sync_bn=True, through_horovod=True)
            if baseline:
                yield _Case(launcher, ranks, sync_bn=True, revision=baseline)


def _rank_counts() -> list[int]:
    """Return 2, 4 and so on, up to the number of GPUs, or of processors if there is none."""
    import torch

    most = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    return [n for n in (2, 4, 8) if n <= min(most, _MOST_RANKS)] or [2]


def baseline_tree(settings: Settings, revision: str) -> Path:
    """Return the folder of a commit's files."""
    return settings.scratch / f"baseline-{revision}"


def _short_hash(revision: str) -> str:
    command = ["git", "rev-parse", "--short=7", "--verify", f"{revision}^{{commit}}"]
    result = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"--baseline {revision}: {result.stderr.strip()}")
    return result.stdout.strip()


def _unpack(revision: str, settings: Settings) -> None:
    """Write a commit's files to the scratch folder."""
    archive = settings.scratch / "baseline.tar"
    subprocess.run(["git", "archive", f"--output={archive}", revision], cwd=_ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(baseline_tree(settings, revision), filter="data")
    archive.unlink()


def scaling_table(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table, its head first."""
    by_case = {_case(each): each for each in comparison["subjects"]}
    one = by_case.get(_Case(None, 1), {}).get("rate")
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for case, each in by_case.items():
        sync = "through Horovod" if case.through_horovod else ("yes" if case.sync_bn else "no")
        if case.revision:
            sync += f", {case.revision}"
        start = (f"{case.ranks} {case.launcher or ''}".strip(), sync)
        if each["rate"] is None:
            rows.append((*start, f"FAILED: {each['error']}", "", "", "", ""))
            continue
        plain = by_case.get(_Case(case.launcher, case.ranks), {}).get("rate")
        before = [
            other["rate"]
            for key, other in by_case.items()
            if key.revision and (key.launcher, key.ranks) == (case.launcher, case.ranks)
        ]
        over = case.sync_bn and not case.revision and bool(before and before[0])
        rows.append(
            (
                *start,
                f"{each['rate']:.1f}",
                f"{min(each['rates']):.1f} .. {max(each['rates']):.1f}",
                f"{each['rate'] / (case.ranks * one):.0%}" if one else "",
                f"{each['rate'] / plain:.0%}" if plain and case.sync_bn else "",
                f"{each['rate'] / before[0]:.2f}" if over else "",
            )
        )
    return rows


def _case(contender: dict[str, Any]) -> _Case:
    options, hparams = contender["options"], contender["options"]["hparams"]
    return _Case(
        options["launcher"],
        options["ranks"],
        hparams["sync_bn"],
        hparams.get("sync_bn_with_horovod", False),
        options["revision"],
    )


def plot_scaling(comparison: dict[str, Any], caption: str) -> Figure | None:
    """Plot images/s over ranks, a panel for each launcher; None if one rank was not measured."""
    by_case = {_case(each): each["rate"] for each in comparison["subjects"] if each["rate"]}
    one = by_case.get(_Case(None, 1))
    launchers = list(dict.fromkeys(case.launcher for case in by_case if case.launcher))
    if not (one and launchers):
        return None
    figure = Figure(figsize=(4.6 * len(launchers) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(launchers), sharey=True, squeeze=False)[0]
    for axes, launcher in zip(panels, launchers, strict=True):
        curves: dict[str, list[tuple[int, float]]] = {}
        for case, rate in by_case.items():
            if case.launcher == launcher:
                curves.setdefault(_curve(case), []).append((case.ranks, rate))
        most = max(ranks for points in curves.values() for ranks, _ in points)
        axes.plot([1, most], [one, most * one], color="#999999", linestyle=":", label="N times one")
        for color, (name, points) in zip(COLORS, curves.items(), strict=False):
            x, y = zip(*sorted([(1, one), *points]), strict=True)
            axes.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.6, label=name)
        axes.set_title(launcher, loc="left", fontsize=11, fontweight="bold")
        axes.set_xticks(sorted({1, *(ranks for points in curves.values() for ranks, _ in points)}))
        axes.set_xlabel("ranks")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("images/s")
    figure.suptitle(caption, x=0.01, ha="left", fontsize=9)
    return figure


def _curve(case: _Case) -> str:
    if not case.sync_bn:
        return "without sync_bn"
    name = "sync_bn, all through Horovod" if case.through_horovod else "sync_bn"
    return f"{name}, {case.revision}" if case.revision else name
