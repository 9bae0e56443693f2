"""The report of experiments, from a fake master to the files."""

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
from cluster.report.search import TrialOutcome, rank_trials
from cluster.report.speed import scaling, training_speed
from tests.cluster.fake_master import Experiment, FakeMaster, Trial
from tests.cluster.sample_experiments import (
    CLUSTER,
    CONST,
    DISTRIBUTED,
    collect,
    config,
    search,
    trained,
)


@pytest.fixture
def empty_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write plots as empty files, because drawing them takes a second."""

    def touch(figure: Figure, stem: Path) -> None:
        stem.with_suffix(".png").touch()

    monkeypatch.setattr("cluster.report.folder.save_figure", touch)


@pytest.fixture
def experiments() -> list[ExperimentRecord]:
    return collect(CONST, DISTRIBUTED, search())


def test_time_starts_when_a_trial_first_gets_slots(experiments: list[ExperimentRecord]) -> None:
    const, distributed, _ = (each.main_trial for each in experiments)
    assert const.record.series("training", "loss", against="time") == (
        [20, 30, 45, 55],
        [8, 4, 2, 1],
    )
    assert (const.seconds, const.seconds_evaluating, const.seconds_without_slots) == (58, 8, 0)
    assert distributed.record.series("training", "loss", against="time")[0] == [10, 20, 70, 80]
    assert (distributed.seconds, distributed.seconds_without_slots) == (85, 20)
    assert distributed.restarts == 1


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system cannot change its time zone")
def test_time_does_not_depend_on_the_local_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        (experiment,) = collect(CONST)
    time.tzset()
    assert experiment.main_trial.seconds == 58


def test_devices_are_known_after_their_agents_have_left() -> None:
    def devices(host: str, metadata: dict[str, Any] | None) -> tuple[str, ...]:
        trial = dataclasses.replace(CONST.trials[0], metadata=metadata)
        (experiment,) = collect(dataclasses.replace(CONST, trials=[trial]), host=host)
        assert experiment.main_trial.hosts == (host,)
        return experiment.main_trial.devices

    assert devices("node-1", None) == ("Example GPU",)
    assert devices("gone", {"device": "Other GPU"}) == ("Other GPU",)
    assert devices("gone", None) == ("CUDA",)


def test_archived_reports_are_left_out(experiments: list[ExperimentRecord]) -> None:
    assert [each["batches"] for each in experiments[1].main_trial.record.training] == [
        10,
        20,
        30,
        40,
    ]
    assert experiments[1].main_trial.record.training[2]["loss"] == 2


def test_speed_excludes_the_first_period_of_each_run(experiments: list[ExperimentRecord]) -> None:
    speed = training_speed(experiments[0].main_trial)
    assert speed is not None
    assert (speed.low, speed.median, speed.high, speed.periods) == (9, 10, 11, 3)
    speed = training_speed(experiments[1].main_trial)
    assert speed is not None
    assert (speed.low, speed.median, speed.high, speed.periods) == (30.5, 31, 31.5, 2)


def test_speed_is_computed_from_times_if_not_reported(experiments: list[ExperimentRecord]) -> None:
    speed = training_speed(experiments[2].main_trial)
    # 8 images per batch, a batch every 2 s; there was an evaluation between batches 10 and 14.
    assert speed is not None
    assert (speed.median, speed.periods, speed.reported) == (4, 2, False)


def test_the_ideal_scales_with_the_slots(experiments: list[ExperimentRecord]) -> None:
    points = scaling(experiments[:2])["tiny, float32, Example GPU"]
    assert [(each.slots, each.ideal, each.efficiency) for each in points] == [
        (1, 10, 1),
        (4, 40, 31 / 40),
    ]


def test_the_precision_is_the_one_that_a_trial_computed_in() -> None:
    """With amp_dtype: auto only the trial knows it."""

    def workloads(**metadata: str) -> list[str]:
        hparams = {**CONST.trials[0].hparams, "amp": True, "amp_dtype": "auto"}
        trial = dataclasses.replace(CONST.trials[0], hparams=hparams, metadata=metadata)
        return list(scaling(collect(dataclasses.replace(CONST, trials=[trial]))))

    assert workloads(precision="bfloat16") == ["tiny, bfloat16, Example GPU"]
    assert workloads() == ["tiny, auto, Example GPU"]


def test_different_models_are_not_compared() -> None:
    other = dataclasses.replace(
        DISTRIBUTED,
        trials=[dataclasses.replace(DISTRIBUTED.trials[0], hparams={"global_batch_size": 64})],
    )
    points = scaling(collect(CONST, other))
    assert {name.split(",")[0]: each[0].efficiency for name, each in points.items()} == {
        "tiny": 1,
        "efficientdet_d0": 1,
    }


def test_a_search_is_ranked_by_its_metric(experiments: list[ExperimentRecord]) -> None:
    trials = rank_trials(experiments[2])
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
    assert experiments[2].main_trial.id == 22


def test_a_search_for_the_smallest_value_is_ranked_ascending() -> None:
    experiment = search()
    searcher = {**experiment.config["searcher"], "smaller_is_better": True}
    minimizing = dataclasses.replace(experiment, config={**experiment.config, "searcher": searcher})
    minimizing.trials[3].training = [(1, 10, 1.0, trained(1, 1))]
    ranked = rank_trials(collect(minimizing)[0])
    assert [each.trial.id for each in ranked] == [24, 21, 25, 22, 23]


def test_nan_is_never_the_best_value() -> None:
    trial = dataclasses.replace(
        CONST.trials[0], validation=[(1, 1, 1.0, {"AP": "NaN"}), (1, 2, 2.0, {"AP": 0.1})]
    )
    (experiment,) = collect(dataclasses.replace(CONST, trials=[trial]))
    best = experiment.main_trial.best("AP", smaller_is_better=False)
    assert best is not None
    assert best["batches"] == 2


def test_nan_is_read_from_its_name_and_other_strings_are_skipped() -> None:
    experiment = dataclasses.replace(
        CONST, trials=[Trial(1, training=[(1, 1, 1.0, {"loss": "NaN", "note": "text"})])]
    )
    (report,) = collect(experiment)[0].main_trial.record.training
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


def test_speed_is_plotted_with_the_ideal_line(experiments: list[ExperimentRecord]) -> None:
    figure = plot_speed(scaling(experiments[:2]))
    assert lines(figure)["ideal"] == ([1, 4], [10, 40])
    assert ([1, 4], [10, 31]) in lines(figure).values()
    (container,) = figure.axes[0].containers
    (bars,) = container[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[9, 11], [30.5, 31.5]]


def test_a_single_number_of_slots_has_no_ideal_line() -> None:
    points = scaling(collect(CONST))
    assert "ideal" not in lines(plot_speed(points))


@pytest.mark.parametrize(
    ("seconds", "unit", "last"), [(300, "seconds", 300), (600, "minutes", 10), (36000, "hours", 10)]
)
def test_the_time_axis_has_a_readable_unit(seconds: float, unit: str, last: float) -> None:
    for plot in (plot_loss, plot_ap):
        figure = plot({"1 slot": ([0, seconds], [2.0, 1.0])}, longest=seconds)
        assert figure.axes[0].get_xlabel() == f"wall clock, {unit}"
        assert lines(figure) == {"1 slot": ([0, last], [2, 1])}


def test_a_long_loss_curve_is_downsampled() -> None:
    x = [float(number) for number in range(1001)]
    times, losses = lines(plot_loss({"a": (x, [2 * value for value in x])}, longest=1000))["a"]
    # Groups of three, and the last two.
    assert (len(times), times[1], losses[1]) == (334, 4 / 60, 8)
    assert (times[-1], losses[-1]) == (pytest.approx(999.5 / 60), 1999)


def test_losses_of_a_small_range_get_a_linear_scale() -> None:
    for lowest, scale in ((0.5, "linear"), (0.1, "log")):
        figure = plot_loss({"a": ([0, 1], [1.0, lowest])}, longest=1)
        assert figure.axes[0].get_yscale() == scale


def test_trials_of_a_search_are_plotted(experiments: list[ExperimentRecord]) -> None:
    curves = lines(plot_search("AP", rank_trials(experiments[2])))
    assert curves["best: trial 22, stopped early"] == ([10], [0.4])
    assert curves["to the end (1)"] == ([10, 20, 30], [0.1, 0.2, 0.3])
    assert curves["stopped early (1)"] == ([10, 20], [0.05, 0.1])
    assert curves["not ended (1)"] == ([10], [0.2])
    assert not any("failed" in label for label in curves)


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_folder_is_complete(experiments: list[ExperimentRecord], tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    readme = write_folder(CLUSTER, experiments, out)
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
    rows = {row["experiment"]: row for row in read_csv(out / "experiments.csv")}
    assert float(rows["1"]["images_per_second"]) == 10
    assert (rows["2"]["seconds"], rows["2"]["best_AP"], rows["2"]["launcher"]) == (
        *("85.0", "0.2", "Horovod"),
    )
    assert [row["efficiency"] for row in read_csv(out / "speed.csv")] == ["1.0", "0.2", "0.775"]
    assert [row["seconds"] for row in read_csv(out / "training.csv") if row["trial"] == "12"] == [
        *("10.0", "20.0", "70.0", "80.0"),
    ]
    assert [(row["trial"], row["lr"]) for row in read_csv(out / "search-3.csv")][:2] == [
        ("22", "0.25"),
        ("21", "0.5"),
    ]
    assert len(read_csv(out / "validation.csv")) == 2 + 1 + 7


@pytest.mark.usefixtures("empty_plots")
def test_only_an_earlier_report_is_replaced(
    experiments: list[ExperimentRecord], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    write_folder(CLUSTER, experiments, out)
    write_folder(CLUSTER, experiments[:1], out)
    assert not (out / "search-3.csv").exists()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ClusterError, match=r"thesis\.txt, which would be deleted"):
        write_folder(CLUSTER, experiments, out)
    assert (out / "thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("empty_plots")
def test_a_failure_keeps_the_earlier_report(
    experiments: list[ExperimentRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_folder(CLUSTER, experiments[:1], tmp_path / "report").read_text()

    def raise_disk_full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("cluster.report.folder.write_tables", raise_disk_full)
    with pytest.raises(OSError, match="no space"):
        write_folder(CLUSTER, experiments, tmp_path / "report")
    assert [each.name for each in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "README.md").read_text() == before


def test_experiment_numbers_are_parsed() -> None:
    assert experiment_numbers(" 3 1,2 3 ") == [3, 1, 2]
    for text in ("", "  ", "1 two", "1 -2", "0", "1.5", "²"):
        with pytest.raises(ClusterError, match="EXPERIMENTS="):
            experiment_numbers(text)


def test_all_unknown_experiments_are_listed() -> None:
    with pytest.raises(ClusterError, match="no experiment 7, 8;"):
        collect_experiments(FakeMaster([CONST]), CLUSTER, [7, 1, 8])


def test_all_experiments_without_losses_are_listed() -> None:
    queued = Experiment(4, config(1), [], state="QUEUED")
    started = Experiment(5, config(1), [Trial(50, state="RUNNING")], state="RUNNING")
    with pytest.raises(ClusterError, match=r"yet by experiment 4 \(QUEUED\), 5 \(RUNNING\)"):
        collect(CONST, queued, started)


def test_an_interrupted_stream_of_metrics_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: Any, **_: Any) -> Any:
        raise bindings.APIHttpStreamError("metrics", bindings.runtimeStreamError(message="gone"))
        yield

    monkeypatch.setattr(bindings, "get_GetTrainingMetrics", broken)
    with pytest.raises(ClusterError, match=r"stopped sending metrics.*gone"):
        collect(CONST)


def test_metrics_of_many_trials_take_few_requests() -> None:
    trials = [Trial(number, training=[(1, 1, 1.0, trained(1, 1))]) for number in range(1, 251)]
    master = FakeMaster([dataclasses.replace(search(), trials=trials)])
    collect_experiments(master, CLUSTER, [3])
    assert sum(path.endswith("validation_metrics") for path in master.requests) == 3
    assert sum(path.endswith("training_metrics") for path in master.requests) == 1
