"""A cluster on test hosts: its inventory, and the commands that people type on it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
# The cluster's name in that inventory.
NAME = "test-hosts"
# What the tokens of Determined's sessions begin with.
TOKEN = "v2.public."

# What the environment changes; test_hosts_cluster.py says how.
SMALL_IMAGE = os.environ.get("TEST_HOSTS_IMAGE", "")
BUNDLE = os.environ.get("TEST_HOSTS_BUNDLE", "")
PROXY = os.environ.get("TEST_HOSTS_PROXY", "") == "yes"
INTERNET = not BUNDLE and not PROXY


class Hosts:
    """The test hosts' inventory, which grows and shrinks, and the commands on it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.inventory = folder / "hosts.yml"
        source = ROOT / "ansible/inventories/test-hosts.yml"
        text = source.read_text().replace("{{ inventory_dir }}/../..", str(ROOT))
        self.content: dict[str, Any] = yaml.safe_load(text)
        self.settings.update(settings)
        self.write()

    @property
    def settings(self) -> dict[str, Any]:
        """The variables of all hosts."""
        return self.content["all"]["vars"]

    @property
    def agents(self) -> dict[str, Any]:
        return self.content["all"]["children"]["agents"]["hosts"]

    def write(self) -> None:
        self.inventory.write_text(yaml.safe_dump(self.content))

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [
            sys.executable,
            "ansible/commands/hosts.py",
            command,
            "--inventory",
            str(self.inventory),
        ]
        return subprocess.run(
            [*line, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def succeed(self, command: str, *arguments: str) -> str:
        started = time.monotonic()
        outcome = self.run(command, *arguments)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        print(f"{command} {' '.join(arguments)}: {time.monotonic() - started:.0f} s")
        return outcome.stderr

    def status(self) -> dict[str, Any]:
        outcome = self.run("status", "--json")
        status: dict[str, Any] = json.loads(outcome.stdout)
        return status

    def wait_for_slots(self, slots: int, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while (found := sum(host["slots"] for host in self.status()["hosts"])) != slots:
            assert time.monotonic() < deadline, f"{found} slots, wanted {slots}"
            time.sleep(5)


def changed_tasks(recap: str) -> dict[str, int]:
    """Return how many tasks changed each host, from the recap of a playbook."""
    found = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", recap, re.MULTILINE)
    return {host: int(count) for host, count in found}


def version(packed: Path) -> str:
    seal: dict[str, str] = json.loads((packed / "coco/seal.json").read_text())
    return seal["version"]


def sync(cluster: Hosts, packed: Path) -> dict[str, int]:
    """Bring the data set to the hosts as `make coco-sync` does; return the counts of changes."""
    return changed_tasks(
        cluster.succeed("coco-sync", "--", "--extra-vars", f"coco_packed={packed}")
    )


def train(*changes: str) -> subprocess.Popen[str]:
    """Start distributed.yaml on two hosts with two slots each, through Horovod."""
    changes = ("resources.slots_per_trial=4", "hyperparameters.epochs=2", *changes)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cluster", "train", "experiments/distributed.yaml"),
            *("--cluster", NAME, "--overlay", "experiments/overlays/mini.yaml"),
            *(part for change in changes for part in ("--config", change)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def busy_agent(cluster: Hosts, training: subprocess.Popen[str]) -> str:
    """Wait until a trial runs and has progressed; return a host of it that is not the master's."""
    for _ in range(120):
        assert training.poll() is None, training.communicate()[0]
        status = cluster.status()
        running = [row for row in status["experiments"] if row["active"] and row["progress"]]
        busy = [host["host"] for host in status["hosts"] if host["slots_used"]]
        if running and set(busy) - {"host1"}:
            return sorted(set(busy) - {"host1"})[0]
        time.sleep(2)
    raise AssertionError("no trial came to run")


def on_host(number: int, script: str) -> str:
    """Run a shell script on a host as root; return its output."""
    shell = ["docker", "exec", f"host{number}", "sh", "-ec", script]
    return subprocess.run(shell, capture_output=True, text=True, check=True).stdout.strip()


# Prints when the agent of a host was started.
AGENT_STARTED = "systemctl show --property=ActiveEnterTimestampMonotonic determined-agent"


def registers(number: int, certificate: str = "") -> bool:
    """Ask the master from a host to be an agent; return whether it agrees.

    Args:
        number: The host's number.
        certificate: Path of a certificate there, without its ending; empty for none.
    """
    url = "https://10.77.0.11:8443/agents?id=false-agent&version=0.38.1&resource_pool=default"
    url += "&reconnect=false"
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    headers = [*upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    # The master's certificate is checked elsewhere.
    ask = ["curl", "-s", "-k", "-o", "/dev/null", "-w", "%{http_code}", "--http1.1", "-m", "3"]
    ask += [part for header in headers for part in ("--header", header)]
    ask += ["--cert", f"{certificate}.crt", "--key", f"{certificate}.key"] if certificate else []
    answer = subprocess.run(
        ["docker", "exec", f"host{number}", *ask, url], capture_output=True, text=True, check=False
    )
    assert answer.stdout in {"101", "403", "000"}, answer
    return answer.stdout == "101"


def assert_clean(host: str) -> None:
    look = (
        "ls /etc/determined /usr/local/lib/determined /etc/systemd/system/determined-* 2>/dev/null;"
        "docker ps --all --quiet; docker images --quiet;"
        "nft list tables | grep determined; true"
    )
    shell = ["docker", "exec", host, "sh", "-c", look]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == ""


def secrets() -> dict[str, str]:
    """Return what was generated for the cluster: passwords, and a secret line of each key.

    The names are those of the files in .secrets, such as admin_password and hosts/host1.key.
    """
    folder = ROOT / ".secrets" / NAME
    found = {}
    for file in (*sorted(folder.glob("*_password")), *sorted(folder.rglob("*.key"))):
        lines = file.read_text().splitlines()
        # A key's file has a line before it, and it fills more than one.
        found[str(file.relative_to(folder))] = lines[0 if len(lines) == 1 else 1]
    return found


# What each host needs, in files that only root can read.
NEEDED = {"host1": {"admin_password", "database_password", "master.key"}}


def not_for(host: str, secrets: dict[str, str]) -> list[str]:
    """Return the secrets that must not be on a host at all."""
    needed = NEEDED.get(host, set()) | {f"hosts/{host}.key"}
    return [secret for name, secret in secrets.items() if name not in needed]


def where_stored(host: str, secrets: list[str]) -> str:
    """Return the files of a host with one of the secrets, whoever can read them.

    Of Docker's files only those of the last day: those of images are older, and large.
    """
    look = """
        umask 077
        cat >/run/secrets
        search() { xargs -0 --no-run-if-empty grep --fixed-strings --file=/run/secrets \
            --files-with-matches --no-messages; }
        find / /tmp /run /mnt/shared -xdev -type f ! -path /run/secrets -print0 | search
        find /var/lib/docker -xdev -type f -newermt '1 day ago' -print0 | search
        rm /run/secrets
    """
    shell = ["docker", "exec", "--interactive", host, "sh", "-c", look]
    text = "\n".join(secrets) + "\n"
    return subprocess.run(shell, input=text, capture_output=True, text=True, check=True).stdout


def where_shown(host: str, secrets: list[str]) -> str:
    """Return where a host shows one of the secrets, or a session's token, to more than root."""
    look = """
        umask 077
        cat >/run/secrets
        show() { grep --fixed-strings --file=/run/secrets --max-count=1 --quiet && echo "$1"; }
        # Taken before grep starts.
        list=$(ps axww -o args); echo "$list" | show processes
        journalctl --no-pager | show journal
        docker ps --all --quiet | xargs --no-run-if-empty docker inspect | show 'docker inspect'
        find / -xdev -path /proc -prune -o -path /sys -prune -o -path /var/lib/docker -prune \
            -o -type f -perm /o=r -print0 | xargs -0 grep --fixed-strings --file=/run/secrets \
            --files-with-matches --no-messages
        rm /run/secrets
    """
    shell = ["docker", "exec", "--interactive", host, "sh", "-c", look]
    text = "\n".join([*secrets, TOKEN]) + "\n"
    return subprocess.run(shell, input=text, capture_output=True, text=True, check=True).stdout
