"""coco-sync to real SSH servers on hosts that are namespaces of this machine."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from sync_cluster import LINK, Cluster, Packed

from bench.network_lab import Lab
from cocodata import DatasetError
from cocodata.sync.commands import bytes_per_second
from cocodata.sync.hosts import host_from_inventory, read_hosts
from cocodata.sync.torrent import Torrent

pytestmark = pytest.mark.hosts


def test_switching_from_one_version_to_the_next(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    old, new = versions
    status, text, result = cluster.sync(old)
    assert status == 0, text
    assert result["failed"] == []
    assert all(
        each["changes"] == ["image received", "switched to it"] for each in result["hosts"].values()
    )
    for host in cluster.hosts:
        cluster.assert_has(host, old)
        assert cluster.image(host, old).read_bytes() == old.image
        with pytest.raises(RuntimeError, match="Read-only"):
            host.run(f"touch {LINK}/new")

    # Nothing to do: nothing is sent, nothing changes.
    status, text, result = cluster.sync(old)
    assert (status, result["changed"], result["sent"], result["seconds"]) == (0, False, 0, 0)
    assert "changed=0" in text

    # A running trial: its container has its own mount of the version that the link pointed to.
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
    # A process whose working directory is in the data set.
    worker = subprocess.Popen([*second.enter, "sh", "-c", f"cd {LINK} && exec sleep infinity"])
    time.sleep(0.5)
    status, text, result = cluster.sync(new)
    assert status == 0, text
    for host in cluster.hosts:
        cluster.assert_has(host, new)
    seen = json.loads(subprocess.run(inside, capture_output=True, check=True).stdout)
    assert seen["version"] == old.metadata.version
    old_name = f"mini-{old.metadata.version[:16]}"
    assert "kept: mounted on" in result["hosts"]["host2"]["notes"][0]
    assert "busy" in result["hosts"]["host3"]["notes"][0]
    assert f"{old_name} removed" in result["hosts"]["host4"]["changes"]
    assert cluster.image(first, old).exists()
    assert not cluster.image(third, old).exists()

    # After they have ended, the next run removes the version they used.
    for process in (trial, worker):
        process.kill()
        process.wait()
    status, text, result = cluster.sync(new)
    assert result["hosts"]["host2"]["changes"] == [f"{old_name} removed"], text
    assert result["hosts"]["host3"]["changes"] == [f"{old_name} removed"], text
    assert result["hosts"]["host4"]["changes"] == []
    assert not cluster.image(first, old).exists()
    assert result["seconds"] == 0


def test_failed_hosts_are_skipped_and_reported(
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
        cluster.assert_has(cluster.hosts[0], packed)

        # After repair they also receive it from the host that has it.
        cluster.entries.pop()
        del cluster.entries[2]["python"]
        own_folder.run(f"rmdir {LINK}/own")  # An empty folder is replaced.
        cluster.entries.pop(1)
        status, text, result = cluster.sync(packed)
        assert status == 0, text
        assert result["hosts"]["host2"]["changes"] == []
        cluster.assert_has(cluster.hosts[2], packed)
        cluster.assert_has(cluster.hosts[3], packed)


def test_damage_on_a_host_is_found_and_repaired(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    packed = versions[0]
    assert cluster.sync(packed)[0] == 0
    status, text, result = cluster.sync(packed, "--verify")
    assert (status, result["changed"]) == (0, False), text
    torrent = Torrent((packed.folder / "mini" / packed.metadata.torrent).read_bytes())
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
        cluster.assert_has(cluster.hosts[1], packed)
    status, text, result = cluster.sync(packed, "--verify", "--repair")
    assert status == 0, text
    assert result["hosts"]["host3"]["changes"] == ["2 pieces repaired"]
    # Two pieces were sent and not the whole image.
    assert result["sent"] <= 2 * torrent.piece_length
    assert image.read_bytes() == packed.image
    cluster.assert_has(cluster.hosts[1], packed)


def test_the_control_machine_can_be_a_host(
    cluster: Cluster, versions: tuple[Packed, Packed]
) -> None:
    packed = versions[0]
    own = {"name": "self", "address": cluster.control.address, "connection": "local"}
    cluster.entries = [own, cluster.entries[0]]
    status, text, _ = cluster.sync(packed)
    assert status == 0, text
    cluster.assert_has(cluster.control, packed)
    cluster.assert_has(cluster.hosts[0], packed)


def test_bandwidth_is_limited(cluster: Cluster, versions: tuple[Packed, Packed]) -> None:
    packed = versions[0]
    assert bytes_per_second("8Mbit") == bytes_per_second("1 MB/s") == 1_000_000
    limit = packed.metadata.size // 4
    status, text, result = cluster.sync(packed, "--limit", f"{limit}b")
    assert status == 0, text
    # Counted from the first byte: a full bucket lets the first second through.
    assert result["seconds"] > 2
    with pytest.raises(DatasetError, match="not a bandwidth"):
        bytes_per_second("fast")


def test_hosts_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(
        json.dumps([{"name": "a", "address": "1.2.3.4", "user": "admin", "port": 2222}])
    )
    (host,) = read_hosts(path)
    assert host == host_from_inventory("a", "1.2.3.4", user="admin", port=2222)
    assert host.command[0] == "ssh"
    assert host.command[-1].startswith("exec sudo -n env ")
    assert (
        "exec sudo -S -p '' " in host_from_inventory("a", "b", user="x", password="p").command[-1]
    )
    assert "sudo" not in host_from_inventory("a", "b", user="root").command[-1]
    for text in ("[]", "{", '[{"name": "a"}]', '[{"name": "a", "address": "b", "x": 1}]'):
        path.write_text(text)
        with pytest.raises(DatasetError):
            read_hosts(path)
