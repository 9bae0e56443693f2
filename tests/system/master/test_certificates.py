"""Which agents a real master lets in: without a certificate, with one, and after a host's removal.

Needs the images of Determined and PostgreSQL, but no task image: nothing is trained.
"""

import contextlib
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import docker
from cluster.errors import ClusterError
from tests.ansible.certificates import Certificates
from tests.ansible.conftest import load
from tests.images import why_missing
from tools.versions import read_versions

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Where the roles put them on hosts.
TLS = "/etc/determined/tls"
MASTER = f"""
port: 8443
db: {{host: database, port: "5432", name: determined, user: postgres, password: PASSWORD}}
security:
  initial_user_password: PASSWORD
  tls: {{cert: {TLS}/chain.crt, key: {TLS}/master.key}}
resource_manager:
  type: agent
  require_authentication: true
  client_ca: {TLS}/agents-ca.crt
feature_switches: [prevent_blank_password]
telemetry: {{enabled: false}}
"""
AGENT = f"""
agent_id: node2
master_host: node1
master_port: 8443
slot_type: cpu
artificial_slots: 1
security:
  tls:
    enabled: true
    master_cert: {TLS}/ca.crt
    client_cert: {TLS}/host.crt
    client_key: {TLS}/host.key
"""


def _docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass
class Master:
    """A master in a container, with the certificates of node1; the agent node2 next to it."""

    prefix: str
    password: str
    certificates: Certificates
    port: int = 0

    def authority(self, node: str) -> str:
        return str(self.certificates.installed / node / "tls/ca.crt")

    def wait(self, node: str = "node1", seconds: float = 60) -> None:
        """Wait until it answers one who trusts the authority that the node has."""
        port = _docker("port", f"{self.prefix}-master", "8443").splitlines()[0].rpartition(":")[2]
        self.port = int(port)
        context = ssl.create_default_context(cafile=self.authority(node))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                url = f"https://127.0.0.1:{self.port}/info"
                with urllib.request.urlopen(url, context=context, timeout=5) as answer:
                    assert answer.status == 200
                    return
            time.sleep(0.5)
        raise AssertionError(_docker("logs", "--tail=20", f"{self.prefix}-master"))

    def restart(self) -> None:
        _docker("restart", f"{self.prefix}-master")
        self.wait()
        # It lists the agents that it had before until they have had 25 seconds to connect again.
        time.sleep(30)

    def started(self, name: str) -> str:
        return _docker("inspect", "--format={{.State.StartedAt}}", f"{self.prefix}-{name}")

    def agents(self) -> set[str]:
        """Return the agents that the master knows."""
        api = load("library/master_request.py").Master(
            f"https://127.0.0.1:{self.port}", self.authority("node1")
        )
        assert api.log_in("admin", self.password) == 200
        return {agent["id"] for agent in api.send("agents")[1]["agents"]}

    def wait_for_agent(self, seconds: float = 60) -> None:
        """Wait until node2 has connected for the first time."""
        deadline = time.monotonic() + seconds
        while "node2" not in self.agents():
            assert time.monotonic() < deadline, _docker("logs", f"{self.prefix}-agent")
            time.sleep(1)

    def register(self, certificate: Path | None) -> str:
        """Ask to be an agent; return the first line of the answer, or the error."""
        context = ssl.create_default_context(cafile=self.authority("node1"))
        if certificate:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        name = f"stranger-{secrets.token_hex(3)}"
        request = (
            f"GET /agents?id={name}&version=0.38.1&resource_pool=&reconnect=false HTTP/1.1\r\n"
            "Host: node1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), 10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                connection.sendall(request.encode())
                return connection.recv(4096).decode(errors="replace").partition("\r\n")[0]
        except OSError as error:
            return str(error)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    versions = read_versions()
    try:
        docker.require_engine()
    except ClusterError as error:
        pytest.skip(str(error))
    for name in ("MASTER_IMAGE", "AGENT_IMAGE", "POSTGRES_IMAGE"):
        if reason := why_missing(versions[name]):
            pytest.skip(reason)
    folder = tmp_path_factory.mktemp("certificates")
    certificates = Certificates(folder)
    certificates.run()
    password = secrets.token_hex(12)
    (folder / "password").write_text(password)
    (folder / "master.yaml").write_text(MASTER.replace("PASSWORD", password))
    (folder / "agent.yaml").write_text(AGENT)
    prefix = f"test-certificates-{secrets.token_hex(3)}"
    running = Master(prefix, password, certificates)

    def start(name: str, alias: str, image: str, *more: str) -> None:
        options = [f"--name={prefix}-{name}", f"--network={prefix}", f"--network-alias={alias}"]
        _docker("run", "--detach", *options, *more, image)

    _docker("network", "create", prefix)
    try:
        start(
            "database",
            "database",
            versions["POSTGRES_IMAGE"],
            "--env=POSTGRES_DB=determined",
            "--env=POSTGRES_PASSWORD_FILE=/password",  # pragma: allowlist secret
            f"--volume={folder}/password:/password:ro",
        )
        for name, node, image, more in (
            ("master", "node1", "MASTER_IMAGE", ["--publish=127.0.0.1::8443", "--restart=always"]),
            (
                "agent",
                "node2",
                "AGENT_IMAGE",
                ["--volume=/var/run/docker.sock:/var/run/docker.sock"],
            ),
        ):
            volumes = [f"{folder}/{name}.yaml:/etc/determined/{name}.yaml:ro"]
            volumes += [f"{certificates.installed}/{node}/tls:{TLS}:ro"]
            mounted = [f"--volume={volume}" for volume in volumes]
            start(name, node, versions[image], *mounted, *more)
            if name == "master":
                running.wait()
        yield running
    finally:
        for name in ("agent", "master", "database"):
            subprocess.run(
                ["docker", "rm", "--force", "--volumes", f"{prefix}-{name}"],
                capture_output=True,
                check=False,
            )
        _docker("network", "rm", prefix)


def test_only_agents_with_a_certificate_of_their_authority_register(master: Master) -> None:
    installed = master.certificates.installed
    assert "101" in master.register(installed / "node2/tls/host.crt")
    assert "403" in master.register(None)
    # The master's own certificate is of the other authority.
    own = master.certificates.secrets / "master.crt"
    assert "101" not in master.register(own)


def test_a_removed_host_cannot_register_and_the_others_stay(master: Master, tmp_path: Path) -> None:
    master.wait_for_agent()
    started = master.started("agent")
    removed = tmp_path / "host.crt"
    for suffix in (".crt", ".key"):
        source = master.certificates.installed / "node1/tls/host.crt"
        shutil.copy(source.with_suffix(suffix), removed.with_suffix(suffix))
    assert "101" in master.register(removed)
    before = Path(master.authority("node2")).read_bytes()

    # As `make cluster-remove` does, with node1 in the part of the removed host.
    master.certificates.run(certificates_new_agents_authority=True)
    master.restart()

    assert "101" not in master.register(removed)
    # The agent itself was not restarted: it read its new certificate when it connected again.
    assert master.agents() == {"node2"}
    assert master.started("agent") == started
    assert "101" in master.register(master.certificates.installed / "node2/tls/host.crt")
    # Trials that run meanwhile go on trusting the master.
    assert Path(master.authority("node2")).read_bytes() == before


def test_the_master_uses_a_renewed_certificate(master: Master) -> None:
    before = ssl.get_server_certificate(("127.0.0.1", master.port))
    master.certificates.run("--limit", "node1", certificates_renew_days=10000)
    master.restart()
    assert ssl.get_server_certificate(("127.0.0.1", master.port)) != before
    assert "node2" in master.agents()
