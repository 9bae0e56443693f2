"""A run that is killed and resumed ends as if nothing had happened, to the last bit."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.checkpoints.local import LocalCheckpoints
from tests.experiments import launched

TOTAL = 24  # 48 images in batches of 8, 3 epochs and one of cooldown
LAUNCHERS = [
    pytest.param("python", 1, id="python"),
    pytest.param("torchrun", 2, id="torchrun-2"),
    pytest.param(
        "horovodrun",
        2,
        id="horovodrun-2",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("horovod") is None,
            reason="Horovod is not installed; `make horovod` builds it",
        ),
    ),
]

# What must hold for ranks to be compared with one process batch by batch. Float32 training is
# chaotic: the last bit of a sum is worth 1e-3 of the loss after ten steps at a learning rate of
# .001, so it is that of a warm-up's first steps. torch's batch norm for channels_last on CPUs is
# less exact than the others by itself.
COMPARABLE: dict[str, Any] = {
    "sync_bn": True,
    "drop_path_rate": 0.0,
    "channels_last": False,
    "lr": 2e-5,
    "warmup_lr": 2e-5,
    "lr_noise": None,
}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), LAUNCHERS)
def test_killed_and_resumed_is_the_same_run(
    launcher: str, ranks: int, mini_coco: Path, tmp_path: Path
) -> None:
    config = launched.write_config(tmp_path, mini_coco, sync_bn=True)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    launched.run(config, straight, launcher=launcher, ranks=ranks)

    process = launched.start(config, resumed, launcher=launcher, ranks=ranks)
    launched.kill_after(process, resumed, batches=14)
    output = launched.run(config, resumed, launcher=launcher, ranks=ranks)
    assert "resuming at batch 12" in output

    one, other = launched.final_state(straight), launched.final_state(resumed)
    assert one["batches"] == TOTAL
    assert launched.differences(one, other) == []
    assert launched.metrics(straight) == launched.metrics(resumed)
    reported = [e["batches"] for e in launched.metrics(straight) if e["kind"] == "train"]
    assert reported == list(range(1, TOTAL + 1))


@pytest.fixture(scope="module")
def one_process(mini_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, whole; beside it lies a copy of it from before its end."""
    folder = tmp_path_factory.mktemp("one")
    config = launched.write_config(folder, mini_coco, **COMPARABLE)
    process = launched.start(config, folder / "killed", threads=1)  # as ranks have
    launched.kill_after(process, folder / "killed", batches=14)
    shutil.copytree(folder / "killed", folder / "run")
    shutil.copy(folder / "killed.log", folder / "run.log")
    launched.run(config, folder / "run", threads=1)
    return folder


@pytest.mark.slow
def test_resumed_on_another_number_of_ranks_goes_on_with_the_same_batches(
    one_process: Path,
) -> None:
    """Only the order of floating-point sums changes, so losses stay close batch by batch."""
    resumed_run = one_process / "killed"
    output = launched.run(
        one_process / "experiment.yaml", resumed_run, launcher="torchrun", ranks=2
    )
    assert "resuming at batch 12" in output
    one = launched.metrics(one_process / "run")
    pairs = zip(one, launched.metrics(resumed_run), strict=True)
    for straight, resumed in pairs:
        assert straight["batches"] == resumed["batches"]
        if straight["kind"] == "train":
            assert resumed["loss"] == pytest.approx(straight["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), LAUNCHERS[1:])
def test_ranks_give_the_losses_of_one_process(
    launcher: str, ranks: int, one_process: Path, tmp_path: Path
) -> None:
    many_run = tmp_path / "many"
    config = one_process / "experiment.yaml"
    process = launched.start(config, many_run, launcher=launcher, ranks=ranks)
    launched.kill_after(process, many_run, batches=20)
    one, many = launched.metrics(one_process / "run"), launched.metrics(many_run)
    for name in ("loss", "class_loss", "box_loss"):
        losses = [[e[name] for e in run if e["kind"] == "train"][:20] for run in (one, many)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_damaged_checkpoints_stop_a_resume_before_any_training(
    mini_coco: Path, tmp_path: Path
) -> None:
    config = launched.write_config(tmp_path, mini_coco, epochs=2)
    out = tmp_path / "run"
    process = launched.start(config, out)
    launched.kill_after(process, out, batches=14)
    saved = LocalCheckpoints(out)
    newest = saved.newest()
    assert newest is not None
    file = saved.folder(newest) / "state_dict.pth"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    before = launched.metrics(out)

    process = launched.start(config, out)
    assert process.wait(timeout=120) == 1
    log = out.with_suffix(".log").read_text()
    assert "state_dict.pth" in log.replace("\n", "")
    assert "is damaged" in log.replace("\n", "")
    assert "Traceback" not in log
    assert launched.metrics(out) == before

    output = launched.run(config, out, "--skip-damaged")
    assert "resuming at batch 10" in output


@pytest.mark.slow
def test_a_run_folder_is_one_run(mini_coco: Path, tmp_path: Path) -> None:
    config = launched.write_config(
        tmp_path, mini_coco, epochs=2, warmup_epochs=0, cooldown_epochs=0
    )
    out = tmp_path / "run"
    first = launched.run(config, out)
    assert f"the report is {out}" in first.replace("\n", "")
    report = (out / "report" / "README.md").read_text()
    assert "AP50" in report
    for name in ("loss.png", "ap.png", "detections.png"):
        assert (out / "report" / name).stat().st_size > 5_000
    assert list((out / "tensorboard").iterdir())

    assert "this run is finished" in launched.run(config, out)
    process = launched.start(config, out, "--set", "lr=0.5")
    assert process.wait(timeout=120) == 1
    assert "lr: 0.02 -> 0.5" in out.with_suffix(".log").read_text().replace("\n", "")

    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    process = launched.start(config, out, "--fresh")
    assert process.wait(timeout=120) == 1
    assert (out / "thesis.tex").exists()
