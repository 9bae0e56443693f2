"""The contender that trains on several ranks: what it starts, and what it reads from the record."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.contenders.ranks import Ranks
from bench.measuring import Settings
from experiments.settings.experiment import load_config


@pytest.mark.parametrize("launcher", ["torchrun", "horovodrun"])
def test_a_run_is_started_and_timed(
    launcher: str, mini_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data=mini_coco,
        scratch=tmp_path,
        batch_size=2,
        gpu_batch_size=2,
        image_size=128,
        threads=1,
        coco_images=10,
    )
    contender = Ranks(settings, launcher=launcher, ranks=2, hparams={"sync_bn": True})

    def run(command: list[str], **options: Any) -> None:
        assert command[command.index("-np" if launcher == "horovodrun" else "--nproc_per_node") + 1]
        assert ("--cycle-time-ms" in command) == (launcher == "horovodrun")
        config = load_config(Path(command[command.index("--config") + 1]), data=mini_coco)
        assert config.hparams.sync_bn
        assert config.hparams.fake_data
        # 48 images are three batches an epoch.
        assert config.hparams.total_epochs == 20
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        lines = [{"kind": "train", "batches": 10 * n, "time": 100.0 - 7 / n} for n in range(1, 7)]
        lines.append({"kind": "validation", "batches": 60, "time": 500.0})
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(subprocess, "run", run)
    measured = contender.measure(1.0)
    assert measured.work == 16 * 40  # without the first twenty batches
    assert measured.seconds == pytest.approx(7 / 2 - 7 / 6)
