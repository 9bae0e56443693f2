"""A real cluster of containers on this machine, started for the tests and removed afterwards."""

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cluster import docker
from cluster.errors import ClusterError
from cluster.local import LocalCluster
from tests.images import why_missing
from tests.system.cluster.real_cluster import RealCluster
from tools.versions import read_versions, task_image


def why_unavailable() -> str | None:
    """Return why the cluster cannot run here, or None if it can."""
    try:
        docker.require_engine()
    except ClusterError as error:
        return str(error)
    versions = read_versions()
    for name in ("MASTER_IMAGE", "AGENT_IMAGE", "POSTGRES_IMAGE"):
        if reason := why_missing(versions[name]):
            return reason
    if not docker.has_image(task_image()):
        return f"the task image {task_image()} has not been built: make image"
    return None


RECOVERIES = pytest.StashKey[dict[str, float | None]]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List how long trials took to recover from each fault."""
    recoveries = config.stash.get(RECOVERIES, {})
    if not recoveries:
        return
    terminalreporter.section("seconds from the end of a fault to the trial's next report")
    for fault, seconds in recoveries.items():
        text = "trial had already ended" if seconds is None else f"{seconds:.1f}"
        terminalreporter.write_line(f"{fault}: {text}")


@pytest.fixture(scope="session")
def cluster(
    mini_coco: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[RealCluster]:
    """Start a cluster with one agent of four slots."""
    reason = why_unavailable()
    if reason:
        pytest.skip(reason)
    suffix = secrets.token_hex(3)
    folder = tmp_path_factory.mktemp("cluster")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local = LocalCluster(
        name=f"test-{suffix}",
        project=f"efficientdet-test-{suffix}",
        env_file=folder / "env",
        state=folder / "state",
    )
    console = Console()
    cluster = RealCluster(local, port, mini_coco, console)
    pytestconfig.stash[RECOVERIES] = cluster.recoveries
    try:
        cluster.resize(agents=1, slots=4)
        yield cluster
    finally:
        local.destroy(console)


@pytest.fixture(autouse=True)
def _one_agent(cluster: RealCluster) -> None:
    """Start each test with one agent of four slots, whatever the previous test left."""
    cluster.resize(agents=1, slots=4)
