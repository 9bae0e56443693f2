"""What gpu-check reports, with stand-ins for the GPUs, Docker and doctor's programs."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import gpu_check
from cluster.gpu_check import Step, check_gpus
from experiments.runtime.gpus import Gpu
from tests.gpu_machines import MISMATCH, GpuMachine, program, row

IMAGE = "task:1"


def tried(number: int, **changes: Any) -> dict[str, Any]:
    """What doctor's program says about a GPU."""
    known = {"uuid": f"GPU-{number}a", "name": "NVIDIA L4", "capability": "8.9", "ok": True}
    return {**known, "error": "", "step": "JPEG", "hardware_decoder": False, **changes}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(gpu_check, "PCI_DEVICES", tmp_path / "pci")
    monkeypatch.setattr(gpu_check, "_PROGRAMS", tmp_path / "programs")
    monkeypatch.setattr(gpu_check, "task_image", lambda: IMAGE)
    machine = GpuMachine(tmp_path / "pci", tmp_path / "bin")
    machine.with_cards(2)
    machine.says(row(0, "NVIDIA L4", "8.9"), row(1, "NVIDIA L4", "8.9"))
    computes(tmp_path, tried(0), tried(1))
    reduces(tmp_path)
    engine(machine)
    return machine


def computes(folder: Path, *gpus: dict[str, Any], video: bool = True) -> None:
    """Let doctor's program report these GPUs, here and in containers."""
    report = {"gpus": gpus, "decoders": {"CUDA": True, "hardware": video}, "versions": {}}
    (folder / "programs").mkdir(exist_ok=True)
    (folder / "programs" / "gpu_check.py").write_text(
        f"import os\nassert os.environ['GPUS'] == 'GPU-0a,GPU-1a'\nprint({json.dumps(report)!r})\n"
    )


def reduces(folder: Path, **changes: Any) -> None:
    result = {"backend": "nccl", "ranks": 2, "correct": True, "gigabytes_per_second": 9.5}
    (folder / "programs" / "all_reduce.py").write_text(
        "import os\n"
        "number = os.environ['RANK']\n"
        "assert os.environ['CUDA_VISIBLE_DEVICES'] == f'GPU-{number}a'\n"
        "assert os.environ['WORLD_SIZE'] == '2'\n"
        f"print({json.dumps({**result, **changes})!r})\n"
    )


def engine(machine: GpuMachine, *, image: bool = True, error: str = "") -> None:
    """Docker with the task image: nvidia-smi and doctor's program run in containers."""
    listed = "GPU 0: NVIDIA L4 (UUID: GPU-0a)\nGPU 1: NVIDIA L4 (UUID: GPU-1a)"
    info = json.dumps({"ServerVersion": "28.5.2", "Runtimes": {"nvidia": {}}})
    program(
        machine.programs,
        "docker",
        f"""case "$*" in
        image*) echo {"abc" if image else ""} ;;
        info*) printf '%s' {shlex.quote(info)} ;;
        *nvidia-smi*) printf '%s' {shlex.quote(error)} >&2; echo {shlex.quote(listed)}
            exit {125 if error else 0} ;;
        *capabilities=compute,utility,video*) exec env GPUS=GPU-0a,GPU-1a python3 - ;;
        *) exit 99 ;;
        esac""",
    )


def outcome() -> tuple[bool, str]:
    """Whether no step failed, and the steps as lines."""
    words = {True: "ok  ", False: "FAIL", None: "–   "}
    steps: list[Step] = []
    check_gpus(steps.append)
    lines = [f"{words[step.ok]} {step.name}: {step.detail}" for step in steps]
    return all(step.ok is not False for step in steps), "\n".join(lines)


def test_all_steps_of_two_gpus(machine: GpuMachine) -> None:
    ok, printed = outcome()
    assert ok, printed
    assert "ok   GPU 1: NVIDIA L4, compute capability 8.9, driver 580.95.05" in printed
    assert printed.count("as on the processor; CUDA's decoder, the GPU has no JPEG engine") == 4
    assert "ok   NCCL: nccl, 2 ranks, 9.5 GB/s" in printed
    assert "ok   Docker gives containers the GPUs: 2 of 2" in printed
    assert [gpu.uuid for gpu in check_gpus(lambda step: None)] == ["GPU-0a", "GPU-1a"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hardware_decoder": True}, "the JPEG engines"),
        ({"ok": False, "step": "matrices", "error": "3 products are wrong"}, "matrices: 3 prod"),
        ({"busy": "only 900 MiB are free"}, "–    matrices and JPEGs of NVIDIA L4 here: not tried"),
    ],
)
def test_what_a_gpu_did(
    machine: GpuMachine, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    computes(tmp_path, tried(0, **change), tried(1))
    ok, printed = outcome()
    assert expected in printed
    assert ok == change.get("ok", True)


def test_a_missing_video_library_is_named(machine: GpuMachine, tmp_path: Path) -> None:
    computes(tmp_path, tried(0), tried(1), video=False)
    assert "for lack of libnvcuvid.so.1" in outcome()[1]


@pytest.mark.parametrize(
    "change", [{"correct": False}, {"backend": "gloo"}], ids=["wrong sums", "not NCCL"]
)
def test_wrong_sums_fail(machine: GpuMachine, tmp_path: Path, change: dict[str, Any]) -> None:
    reduces(tmp_path, **change)
    ok, printed = outcome()
    assert not ok
    assert "FAIL NCCL: wrong sums" in printed


def test_a_program_that_fails_is_quoted(machine: GpuMachine, tmp_path: Path) -> None:
    for name in ("gpu_check", "all_reduce"):
        (tmp_path / "programs" / f"{name}.py").write_text("raise SystemExit('CUDA error 802')\n")
    ok, printed = outcome()
    assert not ok
    assert "matrices and JPEGs here: exit status 1: CUDA error 802" in printed
    assert "FAIL NCCL: CUDA error 802" in printed


def test_a_rank_that_fails_after_the_sums_is_reported(machine: GpuMachine, tmp_path: Path) -> None:
    reduces(tmp_path)
    file = tmp_path / "programs" / "all_reduce.py"
    file.write_text(file.read_text() + "if number == '1':\n    raise SystemExit('Xid 79')\n")
    ok, printed = outcome()
    assert not ok
    assert "FAIL NCCL: Xid 79" in printed


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, but not two of these")
def test_doctors_own_program_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors, with Gloo, and not from make, which sets PYTHONPATH."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    step = gpu_check._all_reduce([Gpu(0, "NVIDIA L4", "GPU-0a"), Gpu(1, "NVIDIA L4", "GPU-1a")])
    assert step.detail.startswith("wrong sums: gloo, 2 ranks"), step


def test_the_machine_is_checked_first(machine: GpuMachine, tmp_path: Path) -> None:
    machine.says(MISMATCH, status=18)
    ok, printed = outcome()
    assert not ok
    assert "FAIL driver: this machine has 2 NVIDIA GPU(s)" in printed
    machine.says(row(0, "Tesla V100-SXM2-32GB", "7.0"), row(1, "NVIDIA L4", "8.9"))
    (tmp_path / "programs" / "gpu_check.py").write_text("import os; print(os.environ['GPUS'])")
    ok, printed = outcome()
    assert not ok
    assert "FAIL GPU: GPU 0 (Tesla V100-SXM2-32GB) has compute capability 7.0" in printed
    assert "exit status 0: GPU-1a" in printed
    assert "–    NCCL: needs two GPUs" in printed


def test_a_gpu_that_the_driver_does_not_list_is_mentioned(machine: GpuMachine) -> None:
    machine.with_cards(1)
    ok, printed = outcome()
    assert ok
    assert "–    PCI bus: nvidia-smi lists 2 of 3" in printed


def test_without_a_gpu_it_fails(machine: GpuMachine) -> None:
    (machine.programs / "nvidia-smi").unlink()
    for card in machine.pci.iterdir():
        (card / "vendor").write_text("0x8086\n")
    ok, printed = outcome()
    assert not ok
    assert "FAIL GPUs: this machine has none" in printed


def test_docker_without_gpus_or_image(machine: GpuMachine) -> None:
    engine(machine, error="docker: could not select device driver")
    ok, printed = outcome()
    assert not ok
    assert "FAIL Docker gives containers the GPUs: Docker cannot give" in printed
    engine(machine, image=False)
    ok, printed = outcome()
    assert ok
    assert "–    in the task image: Docker does not have task:1" in printed
