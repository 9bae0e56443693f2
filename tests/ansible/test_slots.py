"""A cluster is up if every agent offers the slots that its host should have."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.ansible.conftest import ANSIBLE, load
from tests.ansible.rendering import BIN, run


@pytest.fixture(scope="module")
def slots() -> ModuleType:
    return load("filter_plugins/slots.py")


def agent(host: str, *kinds: str) -> dict[str, Any]:
    """An agent as the master's GET /api/v1/agents returns it."""
    brands = {"TYPE_CUDA": "NVIDIA GeForce RTX 4090", "TYPE_CPU": "Artificial"}
    return {
        "id": host,
        "registeredTime": "2026-01-01T10:00:00Z",
        "slots": {
            str(number): {
                "id": str(number),
                "device": {
                    **{"id": number, "brand": brands[kind], "uuid": f"GPU-{number}", "type": kind}
                },
                "enabled": True,
                "container": None,
                "draining": False,
            }
            for number, kind in enumerate(kinds)
        },
        "containers": {},
        "addresses": ["10.0.0.2"],
        "enabled": True,
        "draining": False,
        "version": "0.38.1",
        "resourcePools": ["default"],
    }


CUDA, CPU = "TYPE_CUDA", "TYPE_CPU"


@pytest.mark.parametrize(
    ("has", "wanted", "lines"),
    [
        ((CUDA, CUDA), {"gpus": 2}, ()),
        ((CPU, CPU), {"gpus": 0}, ()),
        # Instances of a divided GPU.
        ((CUDA,) * 7, {"gpus": 1, "mig": True}, ()),
        ((), {"gpus": 1, "mig": True}, ("node1 has no slots, expected at least 1 GPU slot(s)",)),
        (
            (),
            {"gpus": 2},
            (
                "node1 has no slots, expected 2 GPU slot(s): nvidia-smi fails",
                "on node1, docker exec determined-agent nvidia-smi -L",
            ),
        ),
        (
            (CUDA,),
            {"gpus": 2},
            ("has 1 GPU slot(s), expected 2 GPU slot(s): GPUs were lost", "compare nvidia-smi -L"),
        ),
        ((CUDA,) * 3, {"gpus": 2}, ("has 3 GPU slot(s), expected 2 GPU slot(s)",)),
        (
            (CPU, CPU),
            {"gpus": 2},
            ("has 2 processor slot(s), expected 2 GPU slot(s)", "older configuration"),
        ),
        ((CPU, CUDA), {"gpus": 2}, ("1 processor slot(s) and 1 GPU slot(s)",)),
        (("TYPE_CPU",), {"gpus": 0}, ("has 1 processor slot(s), expected 2 processor slot(s)",)),
    ],
)
def test_slots_that_are_not_expected(
    slots: ModuleType, has: tuple[str, ...], wanted: dict[str, Any], lines: tuple[str, ...]
) -> None:
    expected = {"node1": slots.expected_slots(cpu_slots=2, **wanted)}
    agents = [agent("node1", *has), agent("other", CUDA)]
    found = slots.slot_problems(agents, expected, "determined-agent")
    assert len(found) == bool(lines)
    assert all(line in found[0] for line in lines)


def test_a_missing_agent_is_not_a_matter_of_slots(slots: ModuleType) -> None:
    expected = {"node1": slots.expected_slots("4", "2")}
    assert slots.slot_problems([], expected, "determined-agent") == []
    # Before an agent has said what it found, the master shows none.
    assert slots.slot_problems([{"id": "node1"}], expected, "determined-agent") != []


class Master(HTTPServer):
    """Answers like Determined's master; the agents change with every request for them."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)


class _Handler(BaseHTTPRequestHandler):
    server: Master

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content: dict[str, Any] = {"token": "t"}
        if self.path.endswith("/agents"):
            answers = self.server.answers
            content = {"agents": answers.pop(0) if len(answers) > 1 else answers[0]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


def _verify(tmp_path: Path, *answers: list[dict[str, Any]]) -> str:
    """Run the part of the playbook agents.yml that waits; return what Ansible printed.

    This run has set up gpu1 (two GPUs) and cpu1; gpu2 is in the inventory only, as with LIMIT=.
    """
    (play,) = [
        play
        for play in yaml.safe_load((ANSIBLE / "agents.yml").read_text())
        if play["name"] == "Verify that all agents have connected"
    ]
    wait, _ = play["tasks"]
    defaults = yaml.safe_load((ANSIBLE / "group_vars/all/services.yml").read_text())
    device = {"mig": False}
    with Master(*answers) as master:
        threading.Thread(target=master.serve_forever, daemon=True).start()
        login = {"url": f"http://127.0.0.1:{master.server_port}", "authority": "/ca.crt"}
        login |= {"user": "admin", "password_file": "/p"}
        login["password"] = "the password"  # pragma: allowlist secret
        variables = {
            "administrator_login": login,
            "master_host": "main",
            "master_address": "127.0.0.1",
            "master_port": 8443,
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "cluster_services": {"agent": {"unit": defaults["cluster_services"]["agent"]["unit"]}},
            "cpu_slots": 2,
            "master_api_tries": 2,
        }
        probe = {"probe": {"gpus": {"devices": [device, device]}}}
        agents = {
            "gpu1": {"nvidia_gpus": 2, "nvidia_probe": probe},
            "cpu1": {"nvidia_gpus": 0},
            "gpu2": {},
        }
        groups = {"master": {"hosts": {"main": {}}}, "agents": {"hosts": agents}}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))
        file = tmp_path / "play.yml"
        file.write_text(
            yaml.safe_dump([{"hosts": "master", "gather_facts": False, "tasks": [wait]}])
        )
        outcome = run(
            BIN / "ansible-playbook",
            *("-i", inventory, file),
            ANSIBLE_CONFIG=str(ANSIBLE / "ansible.cfg"),
            ANSIBLE_ROLES_PATH=str(ANSIBLE / "roles"),
            ANSIBLE_LIBRARY=str(ANSIBLE / "library"),
            ANSIBLE_FILTER_PLUGINS=str(ANSIBLE / "filter_plugins"),
        )
        master.shutdown()
    printed = " ".join(outcome.stdout.split())
    assert (outcome.returncode == 0) == ("failed=0" in printed), outcome.stdout + outcome.stderr
    return printed


def test_the_playbook_waits_for_the_slots(tmp_path: Path) -> None:
    """The agent has connected, and tells its devices a moment later."""
    ready = [agent("gpu1", CUDA, CUDA), agent("cpu1", CPU, CPU)]
    printed = _verify(tmp_path, [agent("gpu1"), ready[1]], ready)
    assert "failed=0" in printed


def test_the_playbook_fails_without_the_slots(tmp_path: Path) -> None:
    printed = _verify(tmp_path, [agent("gpu1"), agent("cpu1", CPU, CPU)])
    assert "failed=1" in printed
    assert "gpu1 has no slots, expected 2 GPU slot(s): nvidia-smi fails in the agent's" in printed
    assert "gpu2" not in printed


def test_the_playbook_names_missing_agents(tmp_path: Path) -> None:
    printed = _verify(tmp_path, [agent("gpu1", CUDA)])
    assert "no agent of cpu1 has connected to the master at 127.0.0.1 port 8443" in printed
