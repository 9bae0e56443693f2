import csv
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from determined.common.api import bindings
from matplotlib.figure import Figure

from cluster.errors import ClusterError
from cluster.report.collecting import collect_experiments, experiment_numbers
from cluster.report.figures import plot_ap, plot_loss, plot_search, plot_speed
from cluster.report.folder import write_folder
from cluster.report.records import ExperimentRecord
from cluster.report.search import TrialOutcome, searched_trials
from cluster.report.speed import scaling, training_speed
from tests.cluster.fake_master import Experiment, FakeMaster, Trial
from tests.cluster.sample_experiments import (
    CLUSTER,
    CONST,
    DISTRIBUTED,
    collected,
    config,
    search,
    trained,
)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write plots as empty files: painting them takes a second."""

    def touch(figure: Figure, stem: Path) -> None:
        stem.with_suffix(".png").touch()

    monkeypatch.setattr("cluster.report.folder.save_figure", touch)


@pytest.fixture
def three() -> list[ExperimentRecord]:
    return collected(CONST, DISTRIBUTED, search())


def test_time_runs_from_the_first_slots(three: list[ExperimentRecord]) -> None:
    const, distributed, _ = (each.shown for each in three)
    assert const.record.series("training", "loss", against="time") == (
        [20, 30, 45, 55],
        [8, 4, 2, 1],
    )
    assert (const.seconds, const.seconds_evaluating, const.seconds_without_slots) == (58, 8, 0)
    assert distributed.record.series("training", "loss", against="time")[0] == [10, 20, 70, 80]
    assert (distributed.seconds, distributed.seconds_without_slots) == (85, 20)
    assert distributed.restarts == 1


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system cannot change its time zone")
def test_time_does_not_depend_on_the_zone_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        (experiment,) = collected(CONST)
    time.tzset()
    assert experiment.shown.seconds == 58


def test_devices_are_known_without_their_agents() -> None:
    def devices(host: str, metadata: dict[str, Any] | None) -> tuple[str, ...]:
        trial = dataclasses.replace(CONST.trials[0], metadata=metadata)
        (experiment,) = collected(dataclasses.replace(CONST, trials=[trial]), host=host)
        assert experiment.shown.hosts == (host,)
        return experiment.shown.devices

    assert devices("node-1", None) == ("Example GPU",)
    assert devices("gone", {"device": "Other GPU"}) == ("Other GPU",)
    assert devices("gone", None) == ("CUDA",)


def test_archived_reports_do_not_count(three: list[ExperimentRecord]) -> None:
    assert [each["batches"] for each in three[1].shown.record.training] == [10, 20, 30, 40]
    assert three[1].shown.record.training[2]["loss"] == 2


def test_speed_leaves_out_the_first_period_of_each_start(three: list[ExperimentRecord]) -> None:
    speed = training_speed(three[0].shown)
    assert speed is not None
    assert (speed.low, speed.median, speed.high, speed.periods) == (9, 10, 11, 3)
    speed = training_speed(three[1].shown)
    assert speed is not None
    assert (speed.low, speed.median, speed.high, speed.periods) == (30.5, 31, 31.5, 2)


def test_speed_from_times_where_none_is_reported(three: list[ExperimentRecord]) -> None:
    speed = training_speed(three[2].shown)
    # 8 images a batch, a batch every 2 s; from 10 to 14 there was an evaluation.
    assert speed is not None
    assert (speed.median, speed.periods, speed.reported) == (4, 2, False)


def test_ideal_grows_with_the_slots(three: list[ExperimentRecord]) -> None:
    points = scaling(three[:2])["tiny, float32, Example GPU"]
    assert [(each.slots, each.ideal, each.efficiency) for each in points] == [
        (1, 10, 1),
        (4, 40, 31 / 40),
    ]


def test_different_models_are_not_compared() -> None:
    other = dataclasses.replace(
        DISTRIBUTED,
        trials=[dataclasses.replace(DISTRIBUTED.trials[0], hparams={"global_batch_size": 64})],
    )
    points = scaling(collected(CONST, other))
    assert {name.split(",")[0]: each[0].efficiency for name, each in points.items()} == {
        "tiny": 1,
        "efficientdet_d0": 1,
    }


def test_search_is_sorted_by_its_metric(three: list[ExperimentRecord]) -> None:
    trials = searched_trials(three[2])
    assert [(each.trial.id, each.best, each.best_batches) for each in trials] == [
        (22, 0.4, 10),
        (21, 0.3, 30),
        (25, 0.2, 10),
        (24, 0.1, 20),
        (23, None, None),
    ]
    assert trials[0].chosen == {"lr": 0.25, "opt": "adam"}
    assert [each.outcome for each in trials] == [
        TrialOutcome.STOPPED,
        TrialOutcome.FINISHED,
        TrialOutcome.RUNNING,
        TrialOutcome.STOPPED,
        TrialOutcome.FAILED,
    ]
    assert three[2].shown.id == 22


def test_search_for_a_small_value_is_sorted_the_other_way() -> None:
    experiment = search()
    searcher = {**experiment.config["searcher"], "smaller_is_better": True}
    small = dataclasses.replace(experiment, config={**experiment.config, "searcher": searcher})
    small.trials[3].training = [(1, 10, 1.0, trained(1, 1))]
    assert [each.trial.id for each in searched_trials(collected(small)[0])] == [24, 21, 25, 22, 23]


def test_a_value_that_is_no_number_is_not_the_best() -> None:
    trial = dataclasses.replace(
        CONST.trials[0], validation=[(1, 1, 1.0, {"AP": "NaN"}), (1, 2, 2.0, {"AP": 0.1})]
    )
    (experiment,) = collected(dataclasses.replace(CONST, trials=[trial]))
    best = experiment.shown.best("AP", smaller_is_better=False)
    assert best is not None
    assert best["batches"] == 2


def test_words_for_infinite_numbers_are_read() -> None:
    experiment = dataclasses.replace(
        CONST, trials=[Trial(1, training=[(1, 1, 1.0, {"loss": "NaN", "note": "text"})])]
    )
    (report,) = collected(experiment)[0].shown.record.training
    assert math.isnan(report["loss"])
    assert "note" not in report


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    (axes,) = figure.axes
    return {
        str(line.get_label()): (
            np.asarray(line.get_xdata()).tolist(),
            np.asarray(line.get_ydata()).tolist(),
        )
        for line in axes.get_lines()
    }


def test_speed_is_drawn_with_the_ideal_line(three: list[ExperimentRecord]) -> None:
    drawn = plot_speed(scaling(three[:2]))
    assert lines(drawn)["ideal"] == ([1, 4], [10, 40])
    assert ([1, 4], [10, 31]) in lines(drawn).values()
    (container,) = drawn.axes[0].containers
    (bars,) = container[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[9, 11], [30.5, 31.5]]


def test_one_number_of_slots_has_no_ideal_line() -> None:
    points = scaling(collected(CONST))
    assert "ideal" not in lines(plot_speed(points))


@pytest.mark.parametrize(
    ("seconds", "unit", "last"), [(300, "seconds", 300), (600, "minutes", 10), (36000, "hours", 10)]
)
def test_time_is_drawn_in_a_fitting_unit(seconds: float, unit: str, last: float) -> None:
    for plot in (plot_loss, plot_ap):
        figure = plot({"1 slot": ([0, seconds], [2.0, 1.0])}, longest=seconds)
        assert figure.axes[0].get_xlabel() == f"wall clock, {unit}"
        assert lines(figure) == {"1 slot": ([0, last], [2, 1])}


def test_a_long_loss_curve_is_drawn_as_means() -> None:
    x = [float(number) for number in range(1001)]
    drawn = lines(plot_loss({"a": (x, [2 * value for value in x])}, longest=1000))["a"]
    # Three together, and the last two.
    assert (len(drawn[0]), drawn[0][1], drawn[1][1]) == (334, 4 / 60, 8)
    assert (drawn[0][-1], drawn[1][-1]) == (pytest.approx(999.5 / 60), 1999)


def test_losses_of_a_small_range_are_drawn_on_a_linear_scale() -> None:
    for lowest, scale in ((0.5, "linear"), (0.1, "log")):
        figure = plot_loss({"a": ([0, 1], [1.0, lowest])}, longest=1)
        assert figure.axes[0].get_yscale() == scale


def test_trials_of_a_search_are_drawn(three: list[ExperimentRecord]) -> None:
    drawn = lines(plot_search("AP", searched_trials(three[2])))
    assert drawn["best: trial 22, stopped early"] == ([10], [0.4])
    assert drawn["to the end (1)"] == ([10, 20, 30], [0.1, 0.2, 0.3])
    assert drawn["stopped early (1)"] == ([10, 20], [0.05, 0.1])
    assert drawn["not ended (1)"] == ([10], [0.2])
    assert not any("failed" in label for label in drawn)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_folder_is_complete(three: list[ExperimentRecord], tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    readme = write_folder(CLUSTER, three, out)
    plots = ("speed", "loss", "ap", "search-3")
    tables = ("experiments", "speed", "training", "validation", "search-3")
    assert {each.name for each in out.iterdir()} == {
        "README.md",
        *(f"{stem}.{kind}" for stem in plots for kind in ("png", "svg")),
        *(f"{stem}.csv" for stem in tables),
    }
    assert [each.name for each in out.parent.iterdir()] == ["report"]
    text = readme.read_text()
    for file in out.glob("*.png"):
        assert f"({file.name})" in text
        assert file.read_bytes().startswith(b"\x89PNG")
    for fact in (
        *("0123456789ab-dirty", "task:1", "torch 2.14.1+cu130", "timm 1.0.31", "44c9"),
        *("node-1 (Example GPU)", "Determined 0.38.1", "Horovod", "31.5", "78%", "not recorded"),
        "adaptive_asha: 5 trials, 1 to the end, 2 stopped early, 1 failed, 1 not ended",
    ):
        assert fact in text, fact
    rows = {row["experiment"]: row for row in read(out / "experiments.csv")}
    assert float(rows["1"]["images_per_second"]) == 10
    assert (rows["2"]["seconds"], rows["2"]["best_AP"], rows["2"]["launcher"]) == (
        *("85.0", "0.2", "Horovod"),
    )
    assert [row["efficiency"] for row in read(out / "speed.csv")] == ["1.0", "0.2", "0.775"]
    assert [row["seconds"] for row in read(out / "training.csv") if row["trial"] == "12"] == [
        *("10.0", "20.0", "70.0", "80.0"),
    ]
    assert [(row["trial"], row["lr"]) for row in read(out / "search-3.csv")][:2] == [
        ("22", "0.25"),
        ("21", "0.5"),
    ]
    assert len(read(out / "validation.csv")) == 2 + 1 + 7


@pytest.mark.usefixtures("unpainted")
def test_an_earlier_report_is_replaced_and_nothing_else(
    three: list[ExperimentRecord], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    write_folder(CLUSTER, three, out)
    write_folder(CLUSTER, three[:1], out)
    assert not (out / "search-3.csv").exists()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ClusterError, match=r"thesis\.txt.*would be deleted"):
        write_folder(CLUSTER, three, out)
    assert (out / "thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("unpainted")
def test_a_failure_leaves_the_earlier_report(
    three: list[ExperimentRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_folder(CLUSTER, three[:1], tmp_path / "report").read_text()

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("cluster.report.folder.write_tables", full)
    with pytest.raises(OSError, match="no space"):
        write_folder(CLUSTER, three, tmp_path / "report")
    assert [each.name for each in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "README.md").read_text() == before


def test_numbers_of_experiments() -> None:
    assert experiment_numbers(" 3 1,2 3 ") == [3, 1, 2]
    for text in ("", "  ", "1 two", "1 -2", "0", "1.5", "²"):
        with pytest.raises(ClusterError, match="EXPERIMENTS="):
            experiment_numbers(text)


def test_unknown_experiments_are_all_named() -> None:
    with pytest.raises(ClusterError, match="no experiment 7, 8;"):
        collect_experiments(FakeMaster([CONST]), CLUSTER, [7, 1, 8])


def test_experiments_without_losses_are_all_named() -> None:
    queued = Experiment(4, config(1), [], state="QUEUED")
    started = Experiment(5, config(1), [Trial(50, state="RUNNING")], state="RUNNING")
    with pytest.raises(ClusterError, match=r"yet by experiment 4 \(QUEUED\), 5 \(RUNNING\)"):
        collected(CONST, queued, started)


def test_a_master_that_breaks_off_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: Any, **_: Any) -> Any:
        raise bindings.APIHttpStreamError("metrics", bindings.runtimeStreamError(message="gone"))
        yield

    monkeypatch.setattr(bindings, "get_GetTrainingMetrics", broken)
    with pytest.raises(ClusterError, match=r"broke off while it sent metrics.*gone"):
        collected(CONST)


def test_metrics_of_many_trials_come_in_few_requests() -> None:
    trials = [Trial(number, training=[(1, 1, 1.0, trained(1, 1))]) for number in range(1, 251)]
    master = FakeMaster([dataclasses.replace(search(), trials=trials)])
    collect_experiments(master, CLUSTER, [3])
    assert sum(path.endswith("validation_metrics") for path in master.requests) == 3
    assert sum(path.endswith("training_metrics") for path in master.requests) == 1
