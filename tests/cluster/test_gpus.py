"""Whether local-up finds GPUs that it can use, with stand-ins for nvidia-smi and docker."""

import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster import gpus as gpus_module
from cluster.connection import ROOT
from cluster.errors import ClusterError
from cluster.gpus import AgentGpus, agent_gpus
from cluster.local import LocalCluster
from tests.gpu_machines import MISMATCH, GpuMachine, program, row

# Messages of engines 20.10 to 29.1, and of 29.2 and newer.
NO_DRIVER = (
    'docker: Error response from daemon: could not select device driver "nvidia" with '
    "capabilities: [[utility gpu]].\n\nRun 'docker run --help' for more information"
)
NO_DESCRIPTION = (
    "docker: Error response from daemon: failed to create task for container: CDI device injection "
    "failed: unresolvable CDI devices nvidia.com/gpu=all"
)
OLD_LIBRARY = (
    "docker: Error response from daemon: failed to create task for container: OCI runtime create "
    "failed: nvidia-container-cli: initialization error: nvml error: library version mismatch"
)
L4 = row(0, "NVIDIA L4", "8.9"), row(1, "NVIDIA L4", "8.9")
LISTED = "GPU 0: NVIDIA L4 (UUID: GPU-0a)\nGPU 1: NVIDIA L4 (UUID: GPU-1a)"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    """A machine with two L4 and an engine that hands them out."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(gpus_module, "PCI_DEVICES", tmp_path / "pci")
    machine = GpuMachine(tmp_path / "pci", tmp_path / "bin")
    machine.with_cards(2)
    machine.says(*L4)
    engine(machine)
    return machine


def engine(
    machine: GpuMachine,
    *,
    version: str = "28.5.2",
    runtimes: tuple[str, ...] = ("runc", "nvidia"),
    devices: tuple[str, ...] = (),
    printed: str = LISTED,
    error: str = "",
    programs: tuple[str, ...] = ("nvidia-ctk", "nvidia-container-runtime-hook"),
) -> None:
    """Let docker answer as this engine; `docker run` records its arguments."""
    info: dict[str, Any] = {"ServerVersion": version, "Runtimes": {name: {} for name in runtimes}}
    if devices:
        info["DiscoveredDevices"] = [{"Source": "cdi", "ID": each} for each in devices]
    program(
        machine.programs,
        "docker",
        f"""if [ "$1" = info ]; then printf '%s' {shlex.quote(json.dumps(info))}; exit; fi
        printf '%s\\n' "$@" >{machine.programs}/../ran
        printf '%s\\n' {shlex.quote(printed)}
        printf '%s\\n' {shlex.quote(error)} >&2
        exit {125 if error else 0}""",
    )
    for name in programs:
        program(machine.programs, name, "exit 0")


def given(choice: Any = "auto", *, agents: int = 1) -> AgentGpus:
    return agent_gpus(choice, agents=agents, image="task:1", console=Console(quiet=True))


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_all_gpus_go_to_the_agent(machine: GpuMachine, choice: str, tmp_path: Path) -> None:
    found = given(choice)
    assert (found.slots, found.kind) == (2, "NVIDIA L4")
    agent = json.loads(found.compose_file())["services"]["agent"]
    assert agent["environment"]["DET_SLOT_TYPE"] == "cuda"
    assert agent["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu", "utility"]}
    ]
    ran = (tmp_path / "ran").read_text().splitlines()
    assert 'driver=nvidia,count=all,"capabilities=utility"' in ran
    assert ran[-2:] == ["task:1", "-L"]


def test_a_gpu_that_torch_has_no_code_for_is_left_out(machine: GpuMachine, tmp_path: Path) -> None:
    machine.says(row(0, "NVIDIA GeForce GTX 1080", "6.1"), L4[1])
    engine(machine, printed="GPU 0: NVIDIA L4 (UUID: GPU-1a)")
    with Console().capture():
        console = Console(record=True, width=500)
        found = agent_gpus("auto", agents=1, image="task:1", console=console)
        assert "GTX 1080) has compute capability 6.1" in console.export_text()
    content = json.loads(found.compose_file())
    (device,) = content["services"]["agent"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["GPU-1a"]
    assert "count" not in device
    assert 'driver=nvidia,"device=GPU-1a"' in (tmp_path / "ran").read_text()


def test_a_gpu_that_the_driver_does_not_list_is_mentioned(machine: GpuMachine) -> None:
    """An old display card is no reason to stop; nor is a lost GPU beside others."""
    machine.with_cards(1)
    console = Console(record=True, width=500, file=io.StringIO())
    assert agent_gpus("auto", agents=1, image="task:1", console=console).slots == 2
    assert "nvidia-smi lists 2 of 3 NVIDIA GPU(s)" in console.export_text()


def test_a_machine_without_gpus_trains_on_processors(machine: GpuMachine, tmp_path: Path) -> None:
    for name in ("0000:00:00.0", "0000:01:00.0"):
        (machine.pci / name / "vendor").write_text("0x8086\n")
    (machine.programs / "nvidia-smi").unlink()
    assert given() == AgentGpus()
    assert given(agents=3).kind == "processors"
    with pytest.raises(ClusterError, match="GPUS=required, but this machine has no NVIDIA GPU"):
        given("required")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_gpus_that_fail_stop_local_up(machine: GpuMachine, choice: str) -> None:
    machine.says(MISMATCH, status=18)
    with pytest.raises(ClusterError, match=r"version mismatch.*reboot.*GPUS=none"):
        given(choice)
    machine.says(*(each.replace("580.95.05", "570.133.20") for each in L4))
    with pytest.raises(ClusterError, match=r"driver is 570\.133\.20.*GPUS=none"):
        given(choice)
    machine.says(row(0, "Tesla V100-SXM2-32GB", "7.0"), row(1, "TITAN V", "7.0"))
    with pytest.raises(ClusterError, match=r"V100.*TITAN V.*GPUS=none"):
        given(choice)
    (machine.programs / "nvidia-smi").unlink()
    with pytest.raises(ClusterError, match=r"no driver.*GPUS=none"):
        given(choice)


def test_the_way_out_asks_nothing(machine: GpuMachine, tmp_path: Path) -> None:
    machine.says(MISMATCH, status=18)
    engine(machine, error=NO_DRIVER)
    assert given("none", agents=2) == AgentGpus()
    assert not (tmp_path / "ran").exists()


def test_gpus_are_not_given_to_several_agents(machine: GpuMachine) -> None:
    with pytest.raises(ClusterError, match=r"AGENTS=2, .* 2 GPU\(s\).*AGENTS=2 GPUS=none"):
        given(agents=2)


CONFIGURE = "nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(
            {"error": NO_DRIVER, "runtimes": ("runc",), "programs": ()},
            f"could not select device driver.* is not installed. Install .*{CONFIGURE}",
            id="no toolkit",
        ),
        pytest.param(
            {
                "error": NO_DRIVER,
                "runtimes": ("runc",),
                "programs": ("nvidia-ctk", "nvidia-cdi-hook"),
            },
            "is not installed",
            id="an engine before 29.2 needs the hook",
        ),
        pytest.param(
            {"error": NO_DRIVER, "runtimes": ("runc",)},
            f"only when it starts: sudo {CONFIGURE}",
            id="toolkit newer than the engine's start",
        ),
        pytest.param(
            {"error": NO_DRIVER},
            "only when it starts: sudo systemctl restart docker",
            id="configured, not restarted",
        ),
        pytest.param(
            {
                "error": NO_DESCRIPTION,
                "version": "29.2.0",
                "programs": ("nvidia-ctk", "nvidia-cdi-hook"),
            },
            r"engine \(29\.2\.0\) .*it knows: none.*nvidia-ctk cdi generate",
            id="no CDI description",
        ),
        pytest.param(
            {
                "error": NO_DESCRIPTION,
                "version": "29.7.2",
                "devices": ("nvidia.com/gpu=0", "other.com/x=1"),
                "programs": ("nvidia-ctk", "nvidia-cdi-hook"),
            },
            r"it knows: nvidia\.com/gpu=0\)",
            id="CDI description without all",
        ),
        pytest.param(
            {"error": OLD_LIBRARY, "version": "20.10.24+dfsg1"},
            "library version mismatch. Install the newest",
            id="anything else",
        ),
        pytest.param(
            {"printed": "GPU 0: NVIDIA L4 (UUID: GPU-0a)"},
            r"sees 1 of 2 GPU\(s\)",
            id="one missing",
        ),
    ],
)
def test_an_engine_that_hands_out_no_gpu_stops_local_up(
    machine: GpuMachine, answer: dict[str, Any], expected: str
) -> None:
    for name in ("nvidia-ctk", "nvidia-container-runtime-hook"):
        (machine.programs / name).unlink()
    engine(machine, **answer)
    with pytest.raises(ClusterError, match=f"{expected}.*GPUS=none"):
        given()


def test_the_gpus_are_added_to_the_compose_file(tmp_path: Path, machine: GpuMachine) -> None:
    local = LocalCluster(
        name="here", project="here", env_file=tmp_path / "env", state=tmp_path / "s"
    )
    plain = local._write_env("image:1", port=1, slots=4)
    assert plain["COMPOSE_FILE"] == "docker-compose.yaml"
    variables = local._write_env("image:1", port=1, slots=4, gpus=given())
    base, added = variables["COMPOSE_FILE"].split(":")
    assert (base, Path(added)) == ("docker-compose.yaml", local.state / "gpus.json")
    # It changes a service that is there, and variables that the service has.
    agent = yaml.safe_load((ROOT / base).read_text())["services"]["agent"]
    changed = yaml.safe_load(Path(added).read_text())["services"]["agent"]
    assert changed["environment"].keys() <= agent["environment"].keys()
