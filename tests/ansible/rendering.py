"""Renders the roles' templates for hosts with different settings, without a host."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Each host has different settings; `plain` is the master's.
HOSTS: dict[str, dict[str, Any]] = {
    "plain": {"cluster_address": "10.0.0.1"},
    "gpus": {
        "nvidia_gpus": 2,
        "nvidia_uuids": ["GPU-a", "GPU-b"],
        "gpu_names": ["A100"],
        "resource_pool": "gpus",
        "cluster_address": "10.0.0.2",
    },
    "six": {"cluster_address": "fd00::3", "members_addresses": ["fd00::3"]},
    "shut": {"client_networks": [], "trial_interface": "eth1"},
}
CASES: dict[str, dict[str, Any]] = {
    "mount": {},
    "s3": {
        "checkpoint_storage": "s3",
        "checkpoint_s3": {"bucket": "b", "endpoint_url": "http://s"},
    },
    # The master's host is no agent; the numbers are those of the user that its host has made.
    "apart": {"checkpoint_storage": "nfs", "storage_user": {"uid": 998, "group": 997}},
    # The hosts of tests/ansible/test_firewall_rules.py.
    "lab": {
        "members_addresses": ["10.99.0.1", "10.99.0.2", "fd99::1", "fd99::2"],
        "client_networks": ["10.50.0.0/16", "10.50.7.0/24", "fd50::/64"],
        "firewall_open_ports": [
            9100,
            {"port": "9200-9201", "from": ["203.0.113.0/24", "fd13::/64"]},
            {"port": 53, "protocol": "udp"},
        ],
        "cluster_address": "10.99.0.1",
        "swarm_source_address": "10.99.0.3",
    },
}


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root, with Ansible's settings."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "NO_COLOR": "1",
        **variables,
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def render(out: Path) -> None:
    """Write the templates of each case and host to a folder of its own."""
    secrets = out / "secrets/main"
    secrets.mkdir(parents=True)
    for name in ("s3_access_key", "s3_secret_key"):
        (secrets / name).write_text(name)
    common: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "members_addresses": ["10.0.0.1", "10.0.0.2", "fd00::3"],
        "swarm_source_address": "",
        "task_image": "trial:1",
        "secrets_folder": str(out / "secrets"),
        "checkpoint_path": "/mnt/shared/checkpoints",
        "proxy": {"http_proxy": "http://proxy:3128", "no_proxy": "10.0.0.0/8"},
    }
    # render.yml is not next to the defaults, so the inventory of this test contains them.
    files = sorted((ROOT / "ansible/group_vars/all").glob("*.yml"))
    defaults = "\n".join(file.read_text() for file in files)
    defaults = defaults.replace("playbook_dir", f"'{ROOT / 'ansible'}'")
    for case, settings in CASES.items():
        variables = {**yaml.safe_load(defaults), **common, **settings}
        hosts = {"plain": {}} if case == "lab" else HOSTS
        agents = {name: hosts[name] for name in hosts if (case, name) != ("apart", "plain")}
        master = HOSTS["plain"] if case == "apart" else {}
        groups = {"master": {"hosts": {"plain": master}}, "agents": {"hosts": agents}}
        inventory = out / f"{case}.yml"
        content = {"all": {"vars": variables, "children": groups}}
        inventory.write_text(yaml.safe_dump(content, sort_keys=False))
        written = out / f"{case}.json"
        outcome = run(
            BIN / "ansible-playbook",
            *("--inventory", inventory, "--extra-vars", f"out={written}"),
            "tests/ansible/render.yml",
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        for host, texts in json.loads(written.read_text()).items():
            folder = out / case / host
            folder.mkdir(parents=True)
            for name, text in texts.items():
                own = text.replace("/etc/determined/members", str(folder / "members"))
                (folder / name).write_text(own)
