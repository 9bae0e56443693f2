"""Training runs as a user starts them: as processes, with python, torchrun or horovodrun."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from experiments.checkpoints.detectors import allow_checkpoint_globals
from experiments.checkpoints.local import LocalCheckpoints

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "experiments" / "train.py"

# Small and quick, with all that could make a resumed run differ: stochastic depth, erasing, noise
# on the learning rate, an average, momentum.
HPARAMS: dict[str, Any] = {
    "model": "tiny",
    "pretrained_backbone": False,
    "global_batch_size": 8,
    "epochs": 3,
    "opt": "fusedmomentum",
    "lr": 0.02,
    "warmup_epochs": 1,
    "cooldown_epochs": 1,
    "lr_noise": [0.2, 0.9],
    "amp": False,
    "drop_path_rate": 0.2,
    "reprob": 0.5,
    "recount": 3,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "eval_batch_size": 4,
    "input_threads": 1,
}
TOP_LEVEL = ("searcher", "min_validation_period", "min_checkpoint_period")


def write_config(folder: Path, data: Path, /, **changes: Any) -> Path:
    """An experiment that reports every batch and saves every six; 24 batches in all."""
    top = {name: changes.pop(name) for name in list(changes) if name in TOP_LEVEL}
    content = {
        "data": {"path": str(data)},
        "hyperparameters": {**HPARAMS, **changes},
        "searcher": {"name": "single", "metric": "AP", "smaller_is_better": False},
        "min_validation_period": {"batches": 10},
        "min_checkpoint_period": {"batches": 6},
        "scheduling_unit": 1,
        **top,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(launcher: str, ranks: int) -> list[str]:
    """How a launcher starts train.py."""
    bin_folder = Path(sys.executable).parent
    return {
        "python": [sys.executable],
        "torchrun": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(ranks),
            "--master_port",
            str(29500 + os.getpid() % 400),
        ],
        "horovodrun": [str(bin_folder / "horovodrun"), "--gloo", "-np", str(ranks), sys.executable],
    }[launcher]


def start(
    config: Path,
    out: Path,
    *options: str,
    launcher: str = "python",
    ranks: int = 1,
    threads: int | None = None,
) -> subprocess.Popen[str]:
    """Start a run; its output goes to <out>.log."""
    # One thread makes some convolutions slow, and two ranks leave no more than that.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads or (2 if ranks == 1 else 1))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [
                *command(launcher, ranks),
                str(TRAIN),
                "--config",
                str(config),
                "--out",
                str(out),
                *options,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )


def run(
    config: Path,
    out: Path,
    *options: str,
    launcher: str = "python",
    ranks: int = 1,
    threads: int | None = None,
) -> str:
    """Run to the end; its output. Fails with the output if the run does."""
    process = start(config, out, *options, launcher=launcher, ranks=ranks, threads=threads)
    try:
        code = process.wait(timeout=300)
    finally:
        kill(process)
    text = out.with_suffix(".log").read_text()
    assert code == 0, text[-4000:]
    return text


def run_script(script: Path, *arguments: str, launcher: str, ranks: int) -> None:
    """Run a script on ranks of one thread each. Fails with its output if it does."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'data-prep'}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    result = subprocess.run(
        [*command(launcher, ranks), str(script), *arguments],
        check=False,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the launcher and every rank, which launchers put into sessions of their own."""
    try:
        family = psutil.Process(process.pid)
        members = [family, *family.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=30)
    process.wait()


def metrics(out: Path) -> list[dict[str, Any]]:
    """The record of a run, without what measures time."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # being written
            continue
        entries.append({k: v for k, v in entry.items() if k not in ("time", "images_per_second")})
    return entries


def kill_after(process: subprocess.Popen[str], out: Path, batches: int) -> None:
    """SIGKILL a run once its record has reached a batch."""
    limit = time.monotonic() + 300
    while not any(entry["batches"] >= batches for entry in metrics(out)):
        assert process.poll() is None, out.with_suffix(".log").read_text()[-4000:]
        assert time.monotonic() < limit
        time.sleep(0.05)
    kill(process)


def final_state(out: Path) -> dict[str, Any]:
    """Model, average, optimizer and schedule of a run's newest checkpoint."""
    saved = LocalCheckpoints(out)
    newest = saved.newest()
    assert newest is not None
    allow_checkpoint_globals()
    state = torch.load(saved.folder(newest) / "state_dict.pth", weights_only=True)
    return {
        "batches": newest.batches,
        "model": state["models_state_dict"],
        "optimizer": state["optimizers_state_dict"],
        "position": state["callbacks"]["position"],
    }


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested states differ in a single bit."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and one.numpy().tobytes() == other.numpy().tobytes()
        return [] if same else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: length"]
        return [
            d
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for d in differences(a, b, f"{where}/{i}")
        ]
    return [] if one == other else [f"{where}: {one} {other}"]
