"""Certificates that the role of this name makes in a folder, for the tests that use them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / "tests/ansible/certificates.yml"
BIN = Path(sys.executable).parent
SUCCESS = 0


class Certificates:
    """A cluster of the master `node1`, also an agent, and the agent `node2`."""

    def __init__(self, folder: Path) -> None:
        self.secrets = folder / "secrets/main"
        self.installed = folder / "hosts"
        self.installed.mkdir(parents=True)
        self.inventory = folder / "hosts.yml"
        # What Ansible printed the last time.
        self.output = ""
        agents = {f"node{n}": {"cluster_address": f"10.0.0.{n}"} for n in (1, 2)}
        settings = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "control_python": sys.executable,
            "cluster_name": "main",
            "secrets_folder": str(self.secrets.parent),
            "cluster_secrets": str(self.secrets),
            "certificates_folder": f"{self.installed}/{{{{ inventory_hostname }}}}/tls",
        }
        groups = {"master": {"hosts": {"node1": None}}, "agents": {"hosts": agents}}
        self.inventory.write_text(yaml.safe_dump({"all": {"vars": settings, "children": groups}}))

    def run(self, *arguments: str, **variables: Any) -> dict[str, int]:
        """Run the role; return how many tasks changed each host."""
        command = [BIN / "ansible-playbook", "--inventory", self.inventory, *arguments]
        command += ["--extra-vars", json.dumps(variables), PLAYBOOK]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
            "ANSIBLE_FILTER_PLUGINS": str(ROOT / "ansible/filter_plugins"),
            "NO_COLOR": "1",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == SUCCESS, done.stdout + done.stderr
        self.output = done.stdout + done.stderr
        found = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)
        return {host: int(count) for host, count in found}

    def contents(self) -> dict[str, bytes]:
        """Return all files of this machine's folder of secrets."""
        files = [file for file in self.secrets.rglob("*") if file.is_file()]
        return {str(file.relative_to(self.secrets)): file.read_bytes() for file in files}

    def accepts(self, authority: Path, certificate: Path, purpose: str) -> bool:
        """Return whether someone who trusts the authority accepts the certificate for a purpose."""
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        command += ["-CAfile", str(authority), str(certificate)]
        return subprocess.run(command, capture_output=True, check=False).returncode == SUCCESS
