"""coco-sync where the control machine reaches hosts by SSH only."""

import shutil

import pytest
from sync_cluster import Cluster, Packed

pytestmark = pytest.mark.hosts


def _jump(cluster: Cluster, address: str) -> str:
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return f"-o 'ProxyCommand=ssh -i {cluster.lab.key} {options} -W %h:%p root@{address}'"


@pytest.fixture
def jump(cluster: Cluster) -> Cluster:
    """A cluster whose control machine reaches nothing but the SSH server of one host."""
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    bastion, *behind = cluster.hosts
    cluster.control.run(
        "nft add table inet alone;"
        "nft 'add chain inet alone out { type filter hook output priority 0; policy drop; }';"
        f"nft add rule inet alone out ip daddr {bastion.address} tcp dport 22 accept;"
        "nft add rule inet alone out oif lo accept;"
        "nft 'add chain inet alone in { type filter hook input priority 0; }';"
        "nft add rule inet alone in iif != lo ct state new drop"
    )
    for entry in cluster.entries:
        if entry["address"] in [host.address for host in behind]:
            entry["arguments"] += f" {_jump(cluster, bastion.address)}"
    return cluster


def test_everything_goes_through_ssh(jump: Cluster, versions: tuple[Packed, Packed]) -> None:
    packed = versions[0]
    status, text, result = jump.sync(packed)
    assert status == 0, text
    assert result["failed"] == []
    for host in jump.hosts:
        jump.assert_has(host, packed)
    # The hosts still send pieces to each other.
    assert result["sent"] < 2.5 * packed.metadata.size


def test_without_forwarding_each_host_is_named_with_its_port(
    jump: Cluster, versions: tuple[Packed, Packed]
) -> None:
    """One host that forwards is enough, since hosts send pieces to each other."""
    packed = versions[0]
    for entry in jump.entries[1:]:
        entry["arguments"] = f"-o ClearAllForwardings=yes {entry['arguments']}"
    status, text, _ = jump.sync(packed)
    assert status == 0, text
    for host in jump.hosts:
        jump.assert_has(host, packed)
    jump.entries[0]["arguments"] = f"-o ClearAllForwardings=yes {jump.entries[0]['arguments']}"
    running = jump.start(versions[1])
    _, errors = running.communicate(timeout=120)
    message = " ".join(errors.split())
    for host in jump.hosts:
        assert f"{host.name} at {host.address}:12401" in message
    assert "AllowTcpForwarding" in message
    assert running.returncode == 1


def test_hosts_of_several_subnets(cluster: Cluster, versions: tuple[Packed, Packed]) -> None:
    """One host has a /32 address behind a gateway, which another host is."""
    gateway, _, far = cluster.hosts
    address = "10.98.0.4"
    gateway.run("echo 1 >/proc/sys/net/ipv4/ip_forward; ip route add 10.98.0.4 dev eth0")
    for host in (cluster.control, cluster.hosts[1]):
        host.run(f"ip route add {address} via {gateway.address}")
    far.run(
        f"ip addr flush dev eth0; ip addr add {address}/32 dev eth0;"
        f"ip route add {gateway.address} dev eth0; ip route add default via {gateway.address}"
    )
    cluster.entries[2]["address"] = address
    status, text, result = cluster.sync(versions[0])
    assert status == 0, text
    assert result["failed"] == []
    for host in cluster.hosts:
        cluster.assert_has(host, versions[0])
