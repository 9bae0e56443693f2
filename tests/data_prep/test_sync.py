"""Synchronisation to real SSH servers on hosts that are namespaces of this machine."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.network_lab import DATA, STORE, Lab, LabHost, missing
from cocodata import DatasetError
from cocodata.mini import generate_mini_coco
from cocodata.pack import Seal, pack_dataset
from cocodata.sync.commands import bytes_per_second
from cocodata.sync.hosts import described_host, read_hosts
from cocodata.sync.torrent import Torrent

ROOT = Path(__file__).resolve().parents[2]
LINK = f"{DATA}/mini"
AGENT = "cocodata.sync.agent"  # In the command line of every agent.
REPEATS = int(os.environ.get("COCO_SYNC_REPEATS", "2"))


def _obstacle() -> str | None:
    if shutil.which("mksquashfs") is None:
        return "mksquashfs is missing (squashfs-tools)"
    if not Path("/usr/sbin/sshd").exists():
        return "sshd is missing (openssh-server)"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import libtorrent"], capture_output=True, check=False
    )
    if done.returncode:
        return "the system's python3 has no libtorrent (python3-libtorrent)"
    pytest.importorskip("libtorrent")
    return missing()


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    reason = _obstacle()
    if reason is not None:
        pytest.skip(reason)


@dataclass
class Packed:
    """A packed version: where, its seal, and the folder that it was made from."""

    folder: Path
    seal: Seal
    data: Path

    @property
    def image(self) -> bytes:
        return (self.folder / "mini" / self.seal.image).read_bytes()


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    base = tmp_path_factory.mktemp("versions")
    made = []
    for seed in (1, 2):
        data = base / f"data{seed}"
        generate_mini_coco(data, num_train=90, num_val=30, seed=seed)
        folder = base / f"packed{seed}"
        seal, _ = pack_dataset(data, folder, name="mini", piece_length=16384)
        made.append(Packed(folder, seal, data))
    return made[0], made[1]


class Cluster:
    """A lab with the command line at its control machine."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.control, *self.hosts = lab.hosts
        self.inventory = lab.folder / "hosts.json"
        self.entries: list[dict[str, Any]] = [
            {
                "name": host.name,
                "address": host.address,
                "user": "root",
                "key": str(lab.key),
                "arguments": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            }
            for host in self.hosts
        ]

    def start(self, packed: Packed, *options: str) -> subprocess.Popen[str]:
        self.inventory.write_text(json.dumps(self.entries))
        self.result = self.lab.folder / "result.json"
        self.result.unlink(missing_ok=True)
        command = [*self.control.enter, sys.executable, "-m", "cocodata", "sync", "mini"]
        command += ["--packed", str(packed.folder), "--hosts", str(self.inventory)]
        command += ["--store", STORE, "--link", LINK, "--json", str(self.result), *options]
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT / "data-prep"), "COLUMNS": "300"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sync(self, packed: Packed, *options: str) -> tuple[int, str, dict[str, Any]]:
        running = self.start(packed, *options)
        out, errors = running.communicate(timeout=240)
        assert self.result.is_file(), errors
        return running.returncode, out + errors, json.loads(self.result.read_text())

    def has(self, host: LabHost, packed: Packed) -> None:
        """Look through the link, as a trial does."""
        manifest = json.loads(host.run(f"cat {LINK}/manifest.json"))
        assert manifest["version"] == packed.seal.version
        there = host.run(
            f"cd {LINK} && find . -type f ! -name manifest.json | sort | xargs sha256sum"
        )
        found = {line.split()[1][2:]: line.split()[0] for line in there.splitlines()}
        assert found == {path: entry["sha256"] for path, entry in manifest["files"].items()}

    def image(self, host: LabHost, packed: Packed) -> Path:
        return host.folder / "store" / "mini" / packed.seal.image


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Lab(tmp_path / "lab", 4, ssh=True) as lab:
        yield Cluster(lab)


def test_from_one_version_to_the_next(cluster: Cluster, versions: tuple[Packed, Packed]) -> None:
    old, new = versions
    status, text, result = cluster.sync(old)
    assert status == 0, text
    assert result["failed"] == []
    assert all(
        each["changes"] == ["image received", "switched to it"] for each in result["hosts"].values()
    )
    for host in cluster.hosts:
        cluster.has(host, old)
        assert cluster.image(host, old).read_bytes() == old.image
        with pytest.raises(RuntimeError, match="Read-only"):
            host.run(f"touch {LINK}/new")

    # Nothing to do: nothing is moved, nothing changes.
    status, text, result = cluster.sync(old)
    assert (status, result["changed"], result["sent"], result["seconds"]) == (0, False, 0, 0)
    assert "changed=0" in text

    # A running trial: a container has its own mount of what the link pointed to.
    first, second, third = cluster.hosts
    trial = subprocess.Popen(
        [
            *(*first.enter, "unshare", "--mount", "--propagation", "private", "sh", "-ec"),
            f"mkdir /srv/trial; mount --bind {LINK} /srv/trial; echo ready; exec sleep infinity",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trial.stdout is not None
    assert trial.stdout.readline() == "ready\n"
    inside = ["nsenter", "--target", str(trial.pid), "--mount", "cat", "/srv/trial/manifest.json"]
    # A process that is at work in the folder.
    worker = subprocess.Popen([*second.enter, "sh", "-c", f"cd {LINK} && exec sleep infinity"])
    time.sleep(0.5)
    status, text, result = cluster.sync(new)
    assert status == 0, text
    for host in cluster.hosts:
        cluster.has(host, new)
    seen = json.loads(subprocess.run(inside, capture_output=True, check=True).stdout)
    assert seen["version"] == old.seal.version
    old_name = f"mini-{old.seal.version[:16]}"
    assert "stays: mounted on" in result["hosts"]["host2"]["notes"][0]
    assert "busy" in result["hosts"]["host3"]["notes"][0]
    assert f"{old_name} removed" in result["hosts"]["host4"]["changes"]
    assert cluster.image(first, old).exists()
    assert not cluster.image(third, old).exists()

    # When they have ended, the next run removes what they used.
    for process in (trial, worker):
        process.kill()
        process.wait()
    status, text, result = cluster.sync(new)
    assert result["hosts"]["host2"]["changes"] == [f"{old_name} removed"], text
    assert result["hosts"]["host3"]["changes"] == [f"{old_name} removed"], text
    assert result["hosts"]["host4"]["changes"] == []
    assert not cluster.image(first, old).exists()
    assert result["seconds"] == 0


def test_hosts_that_fail_are_left_behind_and_named(
    tmp_path: Path, versions: tuple[Packed, Packed]
) -> None:
    packed = versions[0]
    with Lab(tmp_path / "lab", 5, ssh=True, small_disks={3: "3m"}) as lab:
        cluster = Cluster(lab)
        cluster.entries[2]["python"] = "/usr/bin/python3 -S"  # Has no libtorrent.
        gone = {**cluster.entries[0], "name": "gone", "address": "10.99.0.77"}
        gone["arguments"] += " -o ConnectTimeout=2"
        cluster.entries.append(gone)
        own_folder = cluster.hosts[3]
        own_folder.run(f"mkdir -p {LINK}/own")
        status, text, result = cluster.sync(packed)
        assert status == 1
        assert result["failed"] == ["host3", "host4", "host5", "gone"]
        hosts = result["hosts"]
        assert "GB are needed, 0.00 GB are free" in hosts["host3"]["failure"]
        assert "install python3-libtorrent" in hosts["host4"]["failure"]
        assert "is not a link made by coco-sync" in hosts["host5"]["failure"]
        assert "10.99.0.77" in hosts["gone"]["failure"]
        for name in result["failed"]:
            assert f"  {name}: " in text
        cluster.has(cluster.hosts[0], packed)

        # Put right, they get it from the host that has it, too.
        cluster.entries.pop()
        del cluster.entries[2]["python"]
        own_folder.run(f"rmdir {LINK}/own")  # An empty folder gives way.
        cluster.entries.pop(1)
        status, text, result = cluster.sync(packed)
        assert status == 0, text
        assert result["hosts"]["host2"]["changes"] == []
        cluster.has(cluster.hosts[2], packed)
        cluster.has(cluster.hosts[3], packed)


def test_damage_on_a_host_is_found_and_mended(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    packed = versions[0]
    assert cluster.sync(packed)[0] == 0
    status, text, result = cluster.sync(packed, "--verify")
    assert (status, result["changed"]) == (0, False), text
    torrent = Torrent((packed.folder / "mini" / packed.seal.torrent).read_bytes())
    image = cluster.image(cluster.hosts[1], packed)
    image.chmod(0o644)
    with image.open("r+b") as file:
        for piece in (7, len(torrent.hashes) - 1):
            file.seek(piece * torrent.piece_length + 100)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    cluster.hosts[1].run("echo 1 >/proc/sys/vm/drop_caches")
    status, text, result = cluster.sync(packed, "--verify")
    assert status == 1
    assert result["hosts"]["host3"]["failure"] == "2 pieces damaged"
    assert result["failed"] == ["host3"]
    with pytest.raises(AssertionError):
        cluster.has(cluster.hosts[1], packed)
    status, text, result = cluster.sync(packed, "--verify", "--repair")
    assert status == 0, text
    assert result["hosts"]["host3"]["changes"] == ["2 pieces mended"]
    # Two pieces were moved and not the image.
    assert result["sent"] <= 2 * torrent.piece_length
    assert image.read_bytes() == packed.image
    cluster.has(cluster.hosts[1], packed)


def test_bandwidth_is_limited(cluster: Cluster, versions: tuple[Packed, Packed]) -> None:
    packed = versions[0]
    assert bytes_per_second("8Mbit") == bytes_per_second("1 MB/s") == 1_000_000
    limit = packed.seal.size // 4
    status, text, result = cluster.sync(packed, "--limit", f"{limit}b")
    assert status == 0, text
    # Counted from the first byte: a full bucket lets the first second through.
    assert result["seconds"] > 2
    with pytest.raises(DatasetError, match="no bandwidth"):
        bytes_per_second("fast")


class Reader(threading.Thread):
    """Reads the data set on a host through the link all the time, as a new trial would."""

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
def test_kills_at_any_moment_lose_nothing(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    generator = random.Random(int(os.environ.get("COCO_SYNC_SEED", "0")))
    current, following = versions
    assert cluster.sync(current)[0] == 0
    limit = f"{current.seal.size // 3}b"
    killed = 0
    for _ in range(REPEATS):
        victim = generator.choice([None, *cluster.hosts])
        others = [host for host in cluster.hosts if host is not victim]
        readers = [Reader(host, {current.seal.version, following.seal.version}) for host in others]
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
            cluster.has(host, following)
            assert cluster.image(host, following).read_bytes() == following.image
            assert host.run(f"ls {STORE}/mini/incoming 2>/dev/null || true") == ""
        current, following = following, current
    print(f"{killed} kills met something in {REPEATS} repeats")
    assert killed > 0 or REPEATS < 10


def test_hosts_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(
        json.dumps([{"name": "a", "address": "1.2.3.4", "user": "admin", "port": 2222}])
    )
    (host,) = read_hosts(path)
    assert host == described_host("a", "1.2.3.4", user="admin", port=2222)
    assert host.command[0] == "ssh"
    assert host.command[-1].startswith("exec sudo -n env ")
    assert "exec sudo -S -p '' " in described_host("a", "b", user="x", password="p").command[-1]
    assert "sudo" not in described_host("a", "b", user="root").command[-1]
    for text in ("[]", "{", '[{"name": "a"}]', '[{"name": "a", "address": "b", "x": 1}]'):
        path.write_text(text)
        with pytest.raises(DatasetError):
            read_hosts(path)


@pytest.mark.slow
def test_the_playbook_moves_nothing_the_second_time(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    """`make coco-sync` as it is, with a host that does not answer."""
    playbook = Path(sys.executable).with_name("ansible-playbook")
    if not playbook.exists():
        pytest.skip("ansible-playbook is not installed")
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
            "coco_dataset": "mini",
            "coco_packed": str(packed.folder),
            "coco_store": STORE,
            "data_path": f"{DATA}/coco",
        }
        command = [*cluster.control.enter, str(playbook), "--inventory", str(inventory)]
        command += ["--extra-vars", json.dumps(variables), str(ROOT / "ansible" / "coco-sync.yml")]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, text = play()
    assert status == 0, text
    for host in cluster.hosts[:2]:
        # Another data set than the configured one lies beside it.
        cluster.has(host, packed)
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
