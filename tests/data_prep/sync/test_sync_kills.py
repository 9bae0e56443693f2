"""coco-sync killed at any moment, and run through its playbook."""

import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest
from sync_cluster import LINK, ROOT, Cluster, Packed

from bench.network_lab import DATA, STORE, LabHost

pytestmark = pytest.mark.hosts

AGENT = "cocodata.sync.agent"  # In the command line of every agent.
REPEATS = int(os.environ.get("COCO_SYNC_REPEATS", "2"))


class Reader(threading.Thread):
    """Keeps reading the data set on a host through the link, as new trials would."""

    def __init__(self, host: LabHost, allowed: set[str]) -> None:
        super().__init__()
        self.failures: list[str] = []
        self.reads = 0
        self._host = host
        self._allowed = allowed
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.3):
            try:
                version = json.loads(self._host.run(f"cat {LINK}/manifest.json"))["version"]
                self.reads += 1
                if version not in self._allowed:
                    self.failures.append(version)
            except (RuntimeError, ValueError) as error:
                self.failures.append(str(error))

    def end(self) -> None:
        self._ended.set()
        self.join()
        assert self.failures == []


@pytest.mark.slow
def test_kill_at_any_moment_loses_nothing(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    generator = random.Random(int(os.environ.get("COCO_SYNC_SEED", "0")))
    current, following = versions
    assert cluster.sync(current)[0] == 0
    limit = f"{current.metadata.size // 3}b"
    killed = 0
    for _ in range(REPEATS):
        victim = generator.choice([None, *cluster.hosts])
        others = [host for host in cluster.hosts if host is not victim]
        readers = [
            Reader(host, {current.metadata.version, following.metadata.version}) for host in others
        ]
        for reader in readers:
            reader.start()
        running = cluster.start(following, "--limit", limit)
        moment = time.monotonic() + generator.uniform(0.5, 6.0)
        while time.monotonic() < moment and running.poll() is None:
            time.sleep(0.02)
        if running.poll() is None:
            if victim is None:
                running.kill()
            elif generator.random() < 0.5:
                killed += victim.kill(AGENT)
            else:  # The whole host goes down, and comes up with its mounts gone.
                cluster.lab.stop(victim)
                cluster.lab.start(victim)
        _, errors = running.communicate(timeout=240)
        killed += running.returncode != 0
        if victim is not None and cluster.result.is_file():
            # Only the victim may have failed.
            assert set(json.loads(cluster.result.read_text())["failed"]) <= {victim.name}, errors
        status, text, _ = cluster.sync(following)
        assert status == 0, text
        for reader in readers:
            reader.end()
        for host in cluster.hosts:
            cluster.assert_has(host, following)
            assert cluster.image(host, following).read_bytes() == following.image
            assert host.run(f"ls {STORE}/mini/incoming 2>/dev/null || true") == ""
        current, following = following, current
    print(f"{killed} kills met something in {REPEATS} repeats")
    assert killed > 0 or REPEATS < 10


@pytest.mark.slow
def test_second_run_of_the_playbook_sends_nothing(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    """`make coco-sync`, then again with a host that does not answer."""
    packed = versions[0]
    common = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    agents = {host.name: {"ansible_host": host.address} for host in cluster.hosts[:2]}
    inventory = cluster.lab.folder / "hosts.yml"

    def play() -> tuple[int, str]:
        settings = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(cluster.lab.key),
            "ansible_ssh_common_args": f"{common} -o ConnectTimeout=2",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        groups = {"master": {"hosts": {"host2": None}}, "agents": {"hosts": agents}}
        inventory.write_text(json.dumps({"all": {"vars": settings, "children": groups}}))
        variables = {
            "coco_packed": str(packed.folder),
            "coco_store": STORE,
            "data_path": f"{DATA}/coco",
        }
        command = [sys.executable, str(ROOT / "ansible/commands/hosts.py"), "coco-sync"]
        command += ["--dataset", "mini", "--inventory", str(inventory)]
        command += ["--", "--extra-vars", json.dumps(variables)]
        done = subprocess.run(
            [*cluster.control.enter, *command], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    status, text = play()
    assert status == 0, text
    for host in cluster.hosts[:2]:
        # A data set other than the configured one is stored next to it.
        cluster.assert_has(host, packed)
    agents["gone"] = {"ansible_host": "10.99.0.77"}
    status, text = play()
    assert status == 2, text
    recap = {
        line.split()[0]: line for line in text.partition("PLAY RECAP")[2].splitlines()[1:] if line
    }
    assert "failed=1" in recap["gone"], text
    for name in ("host2", "host3"):
        assert "changed=0" in recap[name], text
        assert "failed=0" in recap[name], text
