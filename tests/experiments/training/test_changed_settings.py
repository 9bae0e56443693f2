"""A run does not go on in another way than it began without somebody noticing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.checkpoints.contents import write_digests
from experiments.checkpoints.local import LocalCheckpoints, SavedCheckpoint
from experiments.checkpoints.numerics import NUMERICS, Numerics, changes, write_numerics
from experiments.settings.experiment import parse_config
from experiments.training.local_run import LocalRun, RunError, _identity
from tests.experiments import launched

BEGAN = Numerics(
    device="cpu",
    precision="float32",
    decoder="CPU",
    compile=False,
    deterministic=False,
    sync_bn_with_horovod=False,
)


def local_run(folder: Path, *, other_numerics: bool = False, **hparams: Any) -> LocalRun:
    config = parse_config({"data": {"path": "/data"}, "hyperparameters": {"amp": False, **hparams}})
    return LocalRun(config, folder, fresh=False, skip_damaged=False, other_numerics=other_numerics)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run with one checkpoint."""
    checkpoint = LocalCheckpoints(tmp_path).folder(SavedCheckpoint("one", 6, None))
    checkpoint.mkdir(parents=True)
    write_numerics(checkpoint, BEGAN)
    write_digests(checkpoint)
    LocalCheckpoints(tmp_path).add(SavedCheckpoint("one", 6, None))
    identity = _identity(local_run(tmp_path).config)
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity}))
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "cuda"},
        {"precision": "float16"},
        {"decoder": "CUDA"},
        {"compile": True},
        {"deterministic": True},
        {"sync_bn_with_horovod": True},
    ],
)
def test_weights_are_not_computed_in_another_way_unasked(
    changed: dict[str, Any], begun: Path
) -> None:
    settings = {name: True for name, value in changed.items() if value is True}
    run = local_run(begun, **settings)
    start = run._find_start()
    assert (start.checkpoint, start.batches) == ("one", 6)
    run.accept(start, changes(start.numerics, BEGAN))
    different = changes(start.numerics, replace(BEGAN, **changed))
    assert len(different) == 1
    with pytest.raises(RunError, match=f"(?s)batch 6 .*{next(iter(changed))}.*--other-numerics"):
        run.accept(start, different)
    local_run(begun, other_numerics=True).accept(start, different)


def test_what_changes_no_weight_may_change(begun: Path) -> None:
    run = local_run(begun, input_threads=3, eval_batch_size=5)
    assert run._find_start().batches == 6
    with pytest.raises(RunError, match=r"lr: 0\.03 -> 0\.5"):
        local_run(begun, lr=0.5)._find_start()


def test_a_run_from_before_there_was_a_setting_had_its_default(begun: Path) -> None:
    record = json.loads((begun / "run.json").read_text())
    del record["identity"]["soft_nms"]
    (begun / "run.json").write_text(json.dumps(record))
    assert local_run(begun)._find_start().batches == 6
    with pytest.raises(RunError, match="soft_nms: False -> True"):
        local_run(begun, soft_nms=True)._find_start()


def test_numerics_of_a_run_whose_checkpoints_do_not_keep_them(begun: Path) -> None:
    """float16 is not exchanged for what amp_dtype: auto gives now."""
    run = local_run(begun, amp=True)
    record = {"identity": {**_identity(run.config), "amp_dtype": "float16"}, "decoder": "CPU"}
    (begun / "run.json").write_text(json.dumps(record))
    checkpoint = LocalCheckpoints(begun).folder(SavedCheckpoint("one", 6, None))
    (checkpoint / NUMERICS).unlink()
    write_digests(checkpoint)
    assert run._find_start().numerics == {"decoder": "CPU", "precision": "float16"}


@pytest.mark.slow
def test_a_change_is_refused_then_recorded(mini_coco: Path, tmp_path: Path) -> None:
    short = {"epochs": 2, "warmup_epochs": 0, "cooldown_epochs": 0}
    config = launched.write_config(tmp_path, mini_coco, **short)
    out = tmp_path / "run"
    launched.kill_after(launched.start(config, out, threads=1), out, batches=7)
    changed = ("--set", "deterministic=true")
    process = launched.start(config, out, *changed, threads=1)
    assert process.wait(timeout=240) == 1
    log = " ".join(out.with_suffix(".log").read_text().split())
    assert "deterministic: False -> True" in log
    assert "Traceback" not in log
    output = launched.run(config, out, *changed, "--other-numerics", threads=1)
    assert "computed in another way than the checkpoint (deterministic: False -> True)" in output
    assert json.loads((out / "run.json").read_text())["changes"] == [
        {"batches": 6, "changed": ["deterministic: False -> True"]}
    ]
