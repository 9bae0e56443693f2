"""What a machine's GPUs are found to be, with stand-ins for its bus and its nvidia-smi."""

from pathlib import Path

import pytest
import torch

from experiments.runtime.gpus import (
    ARCHITECTURES,
    DeviceError,
    find_gpus,
    gpus_on_bus,
    require_driver,
    runs_on,
    usable_gpus,
)
from tests.gpu_machines import LOST, MISMATCH, NO_MODULE, UNKNOWN_FIELD, GpuMachine, program, row


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return GpuMachine(tmp_path / "pci", tmp_path / "bin")


def test_the_architectures_are_those_of_the_pinned_torch() -> None:
    assert torch._C._cuda_getArchFlags().split() == list(ARCHITECTURES)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((6, 0), False),  # P100
        ((6, 1), False),  # GTX 10xx
        ((7, 0), False),  # V100, Titan V
        ((7, 5), True),  # T4, RTX 20xx
        ((8, 0), True),  # A100
        ((8, 6), True),  # A40, RTX 30xx
        ((8, 9), True),  # L4, RTX 40xx: code of sm_86 or sm_80
        ((9, 0), True),  # H100
        ((10, 0), True),  # B200
        ((10, 3), True),  # B300
        ((11, 0), False),
        ((12, 0), True),  # RTX 50xx
        ((12, 1), True),
    ],
)
def test_gpus_that_torch_has_code_for(capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(capability) == runs


def test_the_names_of_architectures() -> None:
    assert not runs_on((9, 0), ["sm_86"])
    assert not runs_on((8, 0), ["sm_86"])
    assert runs_on((13, 0), ["sm_90", "compute_120"])
    assert not runs_on((10, 0), ["compute_120"])
    assert runs_on((9, 0), ["sm_90a"])
    assert not runs_on((10, 3), ["sm_100a"])
    assert not runs_on((9, 0), ["unknown"])


def test_a_machine_without_gpus_has_none(machine: GpuMachine) -> None:
    assert find_gpus(machine.pci) == []
    # A graphics card of another maker, a network card of NVIDIA's, and a GPU of a virtual machine.
    machine.with_cards(1, kind="0x020000")
    machine.with_cards(1, driver="vfio-pci")
    machine.with_cards(1)
    (machine.pci / "0000:02:00.0" / "vendor").write_text("0x1002\n")
    assert gpus_on_bus(machine.pci) == 0
    assert find_gpus(machine.pci) == []
    machine.says(NO_MODULE, status=9)
    assert find_gpus(machine.pci) == []


def test_gpus_are_described(machine: GpuMachine) -> None:
    machine.with_cards(3)
    machine.says(
        row(0, "NVIDIA H100 80GB HBM3", "9.0", mig="Enabled"),
        row(1, "Tesla V100-SXM2-32GB", "7.0"),
        "2, NVIDIA GeForce RTX 4090, GPU-2a, 580.95.05, [GPU is lost], [GPU is lost]",
    )
    found = find_gpus(machine.pci)
    assert [gpu.capability for gpu in found] == [(9, 0), (7, 0), None]
    assert [gpu.mig for gpu in found] == [True, False, False]
    assert {gpu.driver for gpu in found} == {"580.95.05"}
    usable, (old, lost) = usable_gpus(found)
    assert usable == found[:1]
    assert "GPU 1 (Tesla V100-SXM2-32GB) has compute capability 7.0" in old
    assert "sm_75" in old
    assert "GPU 2 (NVIDIA GeForce RTX 4090) does not answer" in lost


def test_a_gpu_without_a_driver_is_an_error(machine: GpuMachine) -> None:
    machine.with_cards(2, driver="nouveau")
    with pytest.raises(DeviceError, match=r"2 NVIDIA GPU\(s\) on its PCI bus, but no driver"):
        find_gpus(machine.pci)


@pytest.mark.parametrize(
    ("said", "status", "remedy"),
    [
        (MISMATCH, 18, r"exit status 18\): Failed to initialize NVML.*upgraded while .*: reboot"),
        (NO_MODULE, 9, "kernel module is not loaded.*Secure Boot"),
        (LOST, 15, "dropped off the bus"),
        ("No devices were found", 6, "No devices were found. sudo dmesg"),
    ],
)
def test_an_nvidia_smi_that_fails_is_an_error(
    machine: GpuMachine, said: str, status: int, remedy: str
) -> None:
    machine.with_cards(1)
    machine.says(said, status=status)
    with pytest.raises(DeviceError, match=remedy):
        find_gpus(machine.pci)


def test_an_nvidia_smi_that_hangs_is_an_error(machine: GpuMachine) -> None:
    machine.with_cards(8)
    machine.says(row(0, "NVIDIA A100-SXM4-80GB", "8.0"), seconds=30)
    with pytest.raises(DeviceError, match=r"has not answered for 0 s.*persistence mode"):
        find_gpus(machine.pci, seconds=0.2)


def test_an_old_driver_that_knows_less_is_reported(machine: GpuMachine) -> None:
    machine.with_cards(1)
    program(
        machine.programs,
        "nvidia-smi",
        f"case $1 in *compute_cap*) echo '{UNKNOWN_FIELD}'; exit 2;; esac; "
        "echo '0, Tesla T4, GPU-0a, 470.256.02'",
    )
    (gpu,) = find_gpus(machine.pci)
    assert (gpu.name, gpu.driver, gpu.capability) == ("Tesla T4", "470.256.02", None)
    with pytest.raises(DeviceError, match=r"driver is 470\.256\.02, but CUDA 13 needs 580"):
        usable_gpus([gpu])
    require_driver("580.65.06")
    require_driver(None)
