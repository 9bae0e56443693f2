"""The certificates of the cluster on one machine, as TLS checks them."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from cluster.certificates import FILES, create_certificates, delete_certificates
from cluster.local import LocalCluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "secrets" / "local"
    assert create_certificates(made)
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """Connect, and return the certificate that the server got; raise what the client raises."""
    ours, theirs = socket.socketpair()
    seen: list[bytes] = []

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as connection:
                seen.append(connection.getpeercert(binary_form=True) or b"")
                connection.send(b"x")
        except ssl.SSLError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as connection:
            # With TLS 1.3 the client learns only now that the server refused it.
            if connection.recv(1) != b"x":
                raise ssl.SSLError("the server closed the connection")
    finally:
        ours.close()
        thread.join()
    return seen[0]


def server_of(folder: Path) -> ssl.SSLContext:
    """A server like the master: clients may show a certificate, which must then be valid."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "master.crt", folder / "master.key")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_of(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    # What Python 3.13 demands.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "master"])
def test_clients_know_the_master_by_its_names(folder: Path, name: str) -> None:
    assert handshake(server_of(folder), client_of(folder), name) == b""


def test_what_trials_trust_contains_the_authority(folder: Path) -> None:
    """Determined gives trials the master's own certificate file."""
    client = ssl.create_default_context(cafile=folder / "master.crt")
    assert handshake(server_of(folder), client, "master") == b""


def test_another_name_is_refused(folder: Path) -> None:
    with pytest.raises(ssl.SSLError):
        handshake(server_of(folder), client_of(folder), "other")


def test_the_master_knows_agents_by_their_certificate(folder: Path, tmp_path: Path) -> None:
    client = client_of(folder)
    client.load_cert_chain(folder / "agent.crt", folder / "agent.key")
    expected = x509.load_pem_x509_certificate((folder / "agent.crt").read_bytes())
    seen = handshake(server_of(folder), client, "master")
    assert x509.load_der_x509_certificate(seen) == expected

    # One from another cluster; and the master's own is no agent's.
    create_certificates(tmp_path / "other")
    for holder, name in ((tmp_path / "other", "agent"), (folder, "master")):
        stranger = client_of(folder)
        stranger.load_cert_chain(holder / f"{name}.crt", holder / f"{name}.key")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(server_of(folder), stranger, "master")


def test_files_are_private_kept_and_made_anew_together(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {name: (folder / name).read_text() for name in FILES}
    assert not create_certificates(folder)
    assert {name: (folder / name).read_text() for name in FILES} == before
    (folder / "agent.key").unlink()
    assert create_certificates(folder)
    after = {name: (folder / name).read_text() for name in FILES}
    assert all(after[name] != before[name] for name in FILES)
    assert handshake(server_of(folder), client_of(folder), "master") == b""


def test_deleting_leaves_what_others_put_there(folder: Path) -> None:
    (folder / "notes").touch()
    delete_certificates(folder)
    assert [path.name for path in folder.iterdir()] == ["notes"]
    (folder / "notes").unlink()
    delete_certificates(folder)
    assert not folder.exists()
    delete_certificates(folder)


def test_each_cluster_has_its_own() -> None:
    one, two = (LocalCluster(name=name).certificates for name in ("one", "two"))
    assert one != two
    assert one.parent.name == ".secrets"
