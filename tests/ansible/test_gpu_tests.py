"""Doctor's program for GPUs runs on the processor here; what it may report becomes remedies."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe, get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.ansible.conftest import ANSIBLE, load
from tests.ansible.gpu_hosts import SCENARIOS
from tests.ansible.rendering import BIN, ROOT

PROGRAM = ANSIBLE / "roles/doctor/files/gpu_check.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("roles/doctor/files/gpu_check.py")


@pytest.fixture(scope="module")
def gpu_tests() -> ModuleType:
    return load("filter_plugins/gpu_tests.py")


def test_the_processor_multiplies_and_decodes(program: ModuleType) -> None:
    program.multiply("cpu")
    pixels = program.decode("cpu")
    assert pixels.shape == (8, 480, 640, 3)
    program.compare(pixels, pixels, "cpu")
    # The argument that sends all images to CUDA.
    program.compare(program.decode("cpu", hw_decoder_load=0.0), pixels, "cpu")


def test_a_wrong_product_is_found(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.Tensor.to

    def flawed(tensor: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
        moved = real(tensor, device, dtype)
        if dtype == torch.bfloat16:
            moved[0, 3, 5] += 1
        return moved

    monkeypatch.setattr(torch.Tensor, "to", flawed)
    with pytest.raises(ValueError, match=r"products of torch\.bfloat16 are wrong"):
        program.multiply("cpu")


def test_wrong_pixels_are_found(program: ModuleType) -> None:
    expected = np.zeros((8, 4, 4, 3), np.int16)
    program.compare(expected + 1, expected, "CUDA")
    spot = expected.copy()
    spot[0, 0, 0, 0] = 9
    for wrong in (spot, expected + 2, expected[:, :2]):
        with pytest.raises(ValueError, match="DALI's CUDA decoder"):
            program.compare(wrong, expected, "CUDA")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, program: ModuleType) -> dict[str, Any]:
    """A GPU that the processor stands in for."""
    state: dict[str, Any] = {"free": 1 << 34, "engine": True, "decoded": [], "init": None}

    def init() -> None:
        if state["init"]:
            raise RuntimeError(state["init"])

    def decode(decoder: str, **options: Any) -> Any:
        state["decoded"].append((decoder, options.get("hw_decoder_load")))
        return np.full((1, 2, 2, 3), state.get(options.get("hw_decoder_load"), 0), np.int16)

    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (state["free"], 1 << 34))
    monkeypatch.setattr(program, "multiply", lambda device: state.update(multiplied=device))
    monkeypatch.setattr(program, "decode", decode)
    monkeypatch.setattr(program, "has_hardware_decoder", lambda: state["engine"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return state


def _try(program: ModuleType) -> dict[str, Any]:
    receiving, sending = Pipe(duplex=False)
    program.try_gpu("GPU-1", sending)
    result: dict[str, Any] = receiving.recv()
    return result


def test_a_gpu_is_tried_with_each_decoder(program: ModuleType, gpu: dict[str, Any]) -> None:
    result = _try(program)
    assert (result["ok"], result["name"], result["capability"]) == (
        True,
        "NVIDIA H100 80GB HBM3",
        "9.0",
    )
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert gpu["multiplied"] == "cuda:0"
    assert gpu["decoded"] == [("cpu", None), ("mixed", 0.0), ("mixed", 1.0)]
    gpu |= {"engine": False, "decoded": []}
    assert _try(program)["hardware_decoder"] is False
    assert gpu["decoded"] == [("cpu", None), ("mixed", 0.0)]


def test_a_gpus_failures_are_reported(program: ModuleType, gpu: dict[str, Any]) -> None:
    gpu[1.0] = 50
    assert "DALI's hardware decoder differs" in _try(program)["error"]
    gpu["init"] = "Unexpected error from cudaGetDeviceCount().\n\nError 802: system not yet"
    result = _try(program)
    assert not result["ok"]
    assert result["error"].endswith("cudaGetDeviceCount(). Error 802: system not yet")
    assert result["step"] == "CUDA"


def test_a_gpu_that_a_trial_fills_is_not_tried(program: ModuleType, gpu: dict[str, Any]) -> None:
    gpu["free"] = 200 << 20
    result = _try(program)
    assert result["ok"]
    assert result["busy"] == "only 200 MiB are free"
    assert gpu["decoded"] == []


def test_a_process_that_dies_or_hangs_is_reported(program: ModuleType) -> None:
    context = get_context("fork")
    for target, error in (
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process ended with SIGKILL"),
        (signal.pause, "no answer within"),
    ):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=target, daemon=True)
        process.start()
        sending.close()
        result = program.outcome("GPU-1", process, receiving, program.time.monotonic() + 2)
        assert error in result["error"]
        assert not result["ok"]
        process.kill()


def test_without_a_gpu_the_program_says_so(gpu_tests: ModuleType) -> None:
    """As doctor runs it: on standard input, for two GPUs that are not there."""
    done = subprocess.run(
        [sys.executable, "-"],
        input=PROGRAM.read_text(),
        env={**os.environ, "GPUS": "GPU-1,GPU-2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [gpu["uuid"] for gpu in report["gpus"]] == ["GPU-1", "GPU-2"]
    assert set(report["versions"]) == {"torch", "nvidia-dali-cuda130", "nvidia-nvjpeg"}
    found = gpu_tests.container_checks({"stdout": done.stdout, "rc": 1}, "node1", 580)
    assert [check["ok"] for check in found] == [False, False]


def _report(**changes: Any) -> dict[str, Any]:
    gpu = {
        **{"uuid": "GPU-1", "name": "NVIDIA L4", "capability": "8.9", "ok": True, "error": ""},
        **{"hardware_decoder": False},
        **changes,
    }
    report = {"gpus": [gpu, gpu], "decoders": {"CUDA": True, "hardware": True}, "versions": {}}
    return {"stdout": "noise\n" + json.dumps(report), "rc": 0}


def test_working_gpus_pass(gpu_tests: ModuleType) -> None:
    assert gpu_tests.container_checks({}, "node1", 580) == []
    assert gpu_tests.container_checks({"skipped": True}, "node1", 580) == []
    computes, decodes = gpu_tests.container_checks(_report(), "node1", 580)
    assert computes["ok"]
    assert computes["message"].startswith("2 x NVIDIA L4 (8.9): multiplies matrices")
    assert decodes["message"] == "CUDA; no GPU has a JPEG engine"
    _, decodes = gpu_tests.container_checks(_report(hardware_decoder=True), "node1", 580)
    assert "hardware_decoder: true also uses the JPEG engines of 2" in decodes["message"]
    without = json.loads(_report()["stdout"].splitlines()[1])
    without["decoders"]["hardware"] = False
    _, decodes = gpu_tests.container_checks({"stdout": json.dumps(without)}, "node1", 580)
    assert decodes["ok"]
    assert "no libnvcuvid.so.1, since" in decodes["message"]
    busy, _ = gpu_tests.container_checks(_report(busy="only 9 MiB are free"), "node1", 580)
    assert busy["ok"]
    assert busy["message"].endswith("in use, so not tried (only 9 MiB are free)")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            "CUDA error: no kernel image is available for execution on the device",
            "compute capability 7.5 or newer",
        ),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
            "nvidia-fabricmanager on node1",
        ),
        ("The NVIDIA driver on your system is too old (found version 12080).", "driver 580"),
        ("No CUDA GPUs are available", "`nvidia-smi -L` on node1"),
        ("CUDA out of memory. Tried to allocate 2.00 MiB.", "lists them"),
        ("12 of 1048576 products of torch.float32 are wrong", "make cluster-drain HOST=node1"),
        ("no answer within 150 s", "Xid"),
    ],
)
def test_each_failure_of_a_gpu_has_its_remedy(
    gpu_tests: ModuleType, error: str, remedy: str
) -> None:
    found = gpu_tests.container_checks(_report(ok=False, error=error), "node1", 580)
    assert [check["ok"] for check in found] == [False, False]
    assert error in found[0]["message"]
    assert remedy in found[0]["remedy"]


DAEMON = "docker: Error response from daemon: "
HOOK = (
    f"{DAEMON}failed to create task for container: failed to create shim task: OCI runtime create "
    "failed: runc create failed: unable to start container process: error during container init: "
    "error running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as "
    "'legacy'\nnvidia-container-cli: "
)


@pytest.mark.parametrize(
    ("stderr", "message", "remedy"),
    [
        # As an engine without the toolkit prints it.
        (
            f'{DAEMON}could not select device driver "nvidia" with capabilities: '
            "[[compute utility gpu]]\n\nRun 'docker run --help' for more information\n",
            "could not select device driver",
            "make cluster-drain HOST=node1, then systemctl restart docker",
        ),
        (
            f"{HOOK}requirement error: unsatisfied condition: cuda>=13.0, please update your "
            "driver to a newer version, or use an earlier cuda container: unknown\n",
            "nvidia-container-cli: requirement error",
            "install NVIDIA's driver 580 or newer on node1",
        ),
        (
            f"{HOOK}initialization error: nvml error: driver/library version mismatch: unknown\n",
            "version mismatch",
            "reboot",
        ),
        (f"{HOOK}initialization error: nvml error: driver not loaded: unknown", "", "modprobe"),
        (
            f"{HOOK}device error: GPU-1: unknown device: unknown",
            "unknown device",
            "a GPU of the agent is gone",
        ),
        (
            f"{DAEMON}CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1\n",
            "unresolvable CDI devices nvidia.com/gpu=GPU-1",
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml on node1",
        ),
        (f"{DAEMON}No such image: trial:1", "No such image", "make cluster-upgrade"),
        ("something else {}", "something else", "docker run -it"),
    ],
)
def test_a_container_that_does_not_start_has_its_remedy(
    gpu_tests: ModuleType, stderr: str, message: str, remedy: str
) -> None:
    job = {"rc": 125, "stdout": "", "stderr": stderr, "cmd": ["docker", "run", "-it", "{{x}}"]}
    (check,) = gpu_tests.container_checks(job, "node1", 580)
    assert not check["ok"]
    assert message in check["message"]
    assert "Error response" not in check["message"]
    assert remedy in check["remedy"]


def test_the_gpus_are_those_of_the_agents_slots(gpu_tests: ModuleType) -> None:
    gpus = SCENARIOS["RTX 4090 x2"].record()
    uuids = [device["uuid"] for device in gpus["devices"]]
    slots = {
        str(number): {"device": {"id": number, "uuid": f"MIG-{number}", "type": "TYPE_CUDA"}}
        for number in range(2)
    }
    agents = [{"id": "node2", "slots": {}}, {"id": "node1", "slots": slots}]
    assert gpu_tests.gpu_uuids(agents, "node1", gpus) == ["MIG-0", "MIG-1"]
    # An agent that has not connected, or that found none.
    assert gpu_tests.gpu_uuids(agents, "node2", gpus) == uuids
    assert gpu_tests.gpu_uuids([], "node2", gpus) == uuids
    processors = {"0": {"device": {"uuid": "GenuineIntel", "type": "TYPE_CPU"}}}
    bare = {"on_bus": 0, "visible": 0, "names": [], "driver": None}
    assert gpu_tests.gpu_uuids([{"id": "a", "slots": processors}], "a", bare) == []


@pytest.mark.slow
def test_the_role_asks_docker_as_an_agent_does(tmp_path: Path, gpu_tests: ModuleType) -> None:
    """The role's own tasks and variables, with a docker that records how it is called."""
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(
        f"#!/bin/sh\n[ $1 = run ] || exit 1\n"
        f'printf "%s\\n" "$@" >{tmp_path}/arguments\ncat >{tmp_path}/program\n'
        "echo '" + _report()["stdout"].splitlines()[1] + "'\n"
    )
    docker.chmod(0o755)
    gpus = SCENARIOS["RTX 4090 x2"].record()
    variables = {
        "gpus": "auto",
        "task_image": "trial:1",
        "gather_state_master": {"agents": []},
        "gather_state_probe": {"probe": {"gpus": gpus, "interfaces": {"eth0": ["10.0.0.1"]}}},
        "gather_state_hosts": {"localhost": {"probe": {"gpus": gpus}}},
        **{"cluster_address": "10.0.0.1", "trial_interface": "", "doctor_all_reduce_port": 12999},
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    role = ANSIBLE / "roles/doctor"
    tasks = [
        {"ansible.builtin.include_tasks": str(role / "tasks/gpus.yml")},
        {
            "ansible.builtin.copy": {
                "content": "{{ [doctor_gpu_check, doctor_gpu_access, doctor_all_reduce_command] "
                "| to_json }}",
                "dest": str(tmp_path / "result"),
            }
        },
    ]
    play = {
        **{"hosts": "agents", "connection": "local", "gather_facts": False},
        **{"vars_files": [str(role / "vars/main.yml")], "tasks": tasks},
        "environment": {"PATH": f"{docker.parent}:{os.environ['PATH']}"},
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    (tmp_path / "files").symlink_to(role / "files")
    inventory = {"all": {"vars": variables, "children": {"agents": {"hosts": {"localhost": {}}}}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        [
            str(BIN / "ansible-playbook"),
            "-i",
            str(tmp_path / "hosts.yml"),
            str(tmp_path / "play.yml"),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = (tmp_path / "arguments").read_text().splitlines()
    uuids = ",".join(device["uuid"] for device in gpus["devices"])
    assert f'--gpus="driver=nvidia","device={uuids}","capabilities=compute,utility"' in arguments
    assert {"--network=none", "--pull=never", f"--env=GPUS={uuids}"} <= set(arguments)
    assert arguments[-2:] == ["trial:1", "-"]
    assert (tmp_path / "program").read_text().strip() == PROGRAM.read_text().strip()
    result, access, all_reduce = json.loads((tmp_path / "result").read_text())
    assert [check["ok"] for check in gpu_tests.container_checks(result, "node1", 580)] == [True] * 2
    assert json.loads(access["stdout"])["containers"] == []
    # A small card for the display may be the first of all.
    assert [each for each in all_reduce if "--gpus" in each] == [
        each for each in arguments if "--gpus" in each
    ]
    assert "--env=INTERFACE=eth0" in all_reduce
