"""The contender that trains on several ranks: what it starts, and what it reads from the record."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.contenders.ranks import Ranks
from experiments.settings.experiment import load_config
from tests.bench.settings import small_settings


@pytest.mark.parametrize(("launcher", "ranks"), [(None, 1), ("torchrun", 2), ("horovodrun", 2)])
def test_a_run_is_started_and_timed(
    launcher: str | None,
    ranks: int,
    mini_coco: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = small_settings(tmp_path, mini_coco)
    contender = Ranks(settings, launcher=launcher, ranks=ranks, hparams={"sync_bn": True})

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        if launcher is not None:
            option = "-np" if launcher == "horovodrun" else "--nproc_per_node"
            assert command[command.index(option) + 1] == "2"
        assert options["env"]["OMP_NUM_THREADS"] == "1"
        assert ("--cycle-time-ms" in command) == (launcher == "horovodrun")
        config = load_config(Path(command[command.index("--config") + 1]), data=mini_coco)
        assert config.hparams.sync_bn
        assert config.hparams.fake_data
        # 48 images are six batches an epoch with one rank, three with two.
        assert config.hparams.global_batch_size == 8 * ranks
        assert config.hparams.total_epochs == 10 * ranks
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        lines = [{"kind": "train", "batches": 10 * n, "time": 100.0 - 7 / n} for n in range(1, 7)]
        lines.append({"kind": "validation", "batches": 60, "time": 500.0})
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    measured = contender.measure(1.0)
    assert measured.work == 8 * ranks * 40  # without the first twenty batches
    assert measured.seconds == pytest.approx(7 / 2 - 7 / 6)


def test_a_failed_run_is_an_error(
    mini_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(tmp_path, mini_coco)
    contender = Ranks(settings, launcher="torchrun", ranks=2, hparams={"sync_bn": True})
    failed = SimpleNamespace(returncode=3)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="status 3"):
        contender.measure(1.0)
