"""What others reach of a cluster on one machine: attacks from the LAN, and with a false agent."""

import http.client
import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from determined.experimental.client import Experiment

from cluster.certificates import create_certificates
from tests.system.cluster.real_cluster import RealCluster
from tests.system.cluster.stranger import Stranger, stranger
from tests.system.cluster.test_configs import TORCH

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

# Determined's sockets for pickled objects, torch's store, sshd.
DANGEROUS = {12350, 12360, 12365, 29400}


@pytest.fixture
def lan() -> Iterator[Stranger]:
    if os.getuid() != 0:
        pytest.skip("network namespaces need root")
    with stranger() as made:
        yield made


def trial_addresses(cluster: RealCluster) -> list[str]:
    """Return the addresses of trials' containers."""
    network = f"{cluster.local.project}_trials"
    template = f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}'
    return [cluster.docker("inspect", "--format", template, c) for c in cluster.task_containers()]


def listening_everywhere(cluster: RealCluster) -> set[int]:
    """Return the ports that trials listen on at every address of theirs."""
    found = set()
    for container in cluster.task_containers():
        pid = cluster.docker("inspect", "--format", "{{.State.Pid}}", container)
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, _, port = local.partition(":")
                if state == "0A" and not address.strip("0"):
                    found.add(int(port, 16))
    return found


def submit(cluster: RealCluster, entrypoint: str | None) -> Experiment:
    changes = {"entrypoint": entrypoint} if entrypoint else {}
    return cluster.submit("distributed", hyperparameters={"epochs": 200}, **changes)


@pytest.mark.parametrize(
    ("agents", "slots", "entrypoint"), [(1, 4, None), (2, 2, TORCH)], ids=["horovod", "two-agents"]
)
def test_the_lan_reaches_no_port_of_a_trial(
    agents: int, slots: int, entrypoint: str | None, cluster: RealCluster, lan: Stranger
) -> None:
    """At this machine's address no port is open that was not before the cluster started."""
    cluster.stop()
    before = lan.open_ports()
    cluster.resize(agents=agents, slots=slots)
    experiment = submit(cluster, entrypoint)
    cluster.wait_for_batch(cluster.trial(experiment), 1)
    # The scan would find them if they were open to it.
    listening = listening_everywhere(cluster)
    assert listening & DANGEROUS
    assert len(cluster.task_containers()) == agents
    assert lan.open_ports() - before == set()
    # Nor by a route through this machine to the trial's own address.
    for address in trial_addresses(cluster):
        assert lan.open_ports(address, listening) == set()
    experiment.kill()
    cluster.wait_for_no_tasks()


def ask_as_agent(cluster: RealCluster, tls: ssl.SSLContext) -> tuple[int, str]:
    """Ask the master to let an agent in that says it was connected before; return its answer."""
    master = http.client.HTTPSConnection("127.0.0.1", cluster.port, context=tls, timeout=30)
    key = "AAAAAAAAAAAAAAAAAAAAAA=="  # pragma: allowlist secret
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": key}
    headers["Sec-WebSocket-Version"] = "13"
    path = "/agents?id=false-agent&version=0.38.1&resource_pool=default&reconnect="
    # With the right to be one, it is told to start afresh: it does not become one.
    master.request("GET", f"{path}true", headers=headers)
    answer = master.getresponse()
    return answer.status, answer.read().decode()


def test_only_agents_with_the_clusters_certificate_are_let_in(
    cluster: RealCluster, tmp_path: Path
) -> None:
    folder = cluster.local.certificates
    tls = ssl.create_default_context(cafile=folder / "ca.crt")
    assert ask_as_agent(cluster, tls)[0] == http.HTTPStatus.FORBIDDEN

    create_certificates(tmp_path / "others")
    tls.load_cert_chain(tmp_path / "others" / "agent.crt", tmp_path / "others" / "agent.key")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask_as_agent(cluster, tls)

    tls = ssl.create_default_context(cafile=folder / "ca.crt")
    tls.load_cert_chain(folder / "agent.crt", folder / "agent.key")
    status, answer = ask_as_agent(cluster, tls)
    assert status != http.HTTPStatus.FORBIDDEN
    assert "reconnect" in json.dumps(answer)
