"""The certificates that the role of the same name makes, checked with OpenSSL's own program."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.ansible.certificates import Certificates

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates that no test changes."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    certificates.run("-vvv", "--diff")
    return certificates


@pytest.fixture
def own(made: Certificates, tmp_path: Path) -> Certificates:
    """A copy for one test to change."""
    copied = Certificates(tmp_path / "own")
    shutil.copytree(made.secrets.parent, copied.secrets.parent)
    shutil.copytree(made.installed, copied.installed, dirs_exist_ok=True)
    return copied


def test_agents_and_master_have_certificates_of_different_authorities(made: Certificates) -> None:
    for node in ("node1", "node2"):
        folder = made.installed / node / "tls"
        agents = made.installed / "node1/tls/agents-ca.crt"
        assert made.accepts(agents, folder / "host.crt", "sslclient")
        # Someone who has an agent's key cannot stand for the master.
        assert not made.accepts(folder / "ca.crt", folder / "host.crt", "sslclient")
        assert not made.accepts(folder / "ca.crt", folder / "host.crt", "sslserver")
        assert not made.accepts(agents, folder / "host.crt", "sslserver")
        assert made.accepts(folder / "ca.crt", made.installed / "node1/tls/chain.crt", "sslserver")
        assert not made.accepts(agents, made.installed / "node1/tls/chain.crt", "sslserver")
    chain = made.installed / "node1/tls/chain.crt"
    text = subprocess.check_output(["openssl", "x509", "-in", chain, "-noout", "-text"], text=True)
    assert "DNS:node1" in text
    assert "IP Address:10.0.0.1" in text
    # Trials trust the chain, so the authority is in it.
    assert (made.secrets / "ca.crt").read_text().strip() in chain.read_text()


def test_no_key_is_shown(made: Certificates) -> None:
    assert "agents-ca.crt" in made.output
    keys = list(made.secrets.rglob("*.key"))
    assert len(keys) == 5
    for key in keys:
        assert key.read_text().splitlines()[1] not in made.output


def test_each_host_has_only_its_own_keys(made: Certificates) -> None:
    files = {
        str(file.relative_to(made.installed)): stat.S_IMODE(file.stat().st_mode)
        for file in made.installed.rglob("*.*")
    }
    agent = {"ca.crt": 0o644, "host.crt": 0o644, "host.key": 0o600}
    master = {"agents-ca.crt": 0o644, "chain.crt": 0o644, "master.key": 0o600}
    assert files == {
        f"{node}/tls/{name}": mode
        for node in ("node1", "node2")
        for name, mode in (agent | (master if node == "node1" else {})).items()
    }
    modes = {stat.S_IMODE(file.stat().st_mode) for file in made.secrets.rglob("*.*")}
    assert modes == {0o600}


def test_certificates_are_renewed_before_they_end(own: Certificates) -> None:
    before = own.contents()
    # Signed and installed; nothing else changes.
    assert own.run("--limit", "node2", certificates_renew_days=10000) == {"node2": 2}
    after = own.contents()
    # With the same key, by the same authority.
    assert {name for name in before if after[name] != before[name]} == {"hosts/node2.crt"}
    renewed = own.installed / "node2/tls/host.crt"
    assert renewed.read_bytes() == after["hosts/node2.crt"]
    assert own.accepts(own.installed / "node1/tls/agents-ca.crt", renewed, "sslclient")


def test_a_removed_host_is_shut_out(own: Certificates) -> None:
    kept = own.installed / "node2/tls"
    own.run("--limit", "!node2", certificates_new_agents_authority=True)
    agents = own.installed / "node1/tls/agents-ca.crt"
    assert not own.accepts(agents, kept / "host.crt", "sslclient")
    assert own.accepts(agents, own.installed / "node1/tls/host.crt", "sslclient")
    # What agents, trials and this machine trust stays, and so do trials.
    assert own.accepts(kept / "ca.crt", own.installed / "node1/tls/chain.crt", "sslserver")


def test_lost_authorities_are_replaced(own: Certificates) -> None:
    """As the doctor advises before an authority ends; earlier versions had none for the agents."""
    for name in ("ca.key", "agents-ca.crt", "agents-ca.key", "master.crt", "master.key"):
        (own.secrets / name).unlink()
    own.run("--limit", "node1")
    folder = own.installed / "node1/tls"
    assert own.accepts(folder / "ca.crt", folder / "chain.crt", "sslserver")
    assert own.accepts(folder / "agents-ca.crt", folder / "host.crt", "sslclient")
