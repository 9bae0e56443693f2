"""Certificates of the cluster on this machine: its master's, and the one that its agents show.

An authority that exists only while they are made signs both. Its key is kept nowhere, so nobody can
make another agent's certificate.
"""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.connection import write_secret

# By it clients and agents know the master, and the master knows its agents.
AUTHORITY = "ca.crt"
FILES = (AUTHORITY, "master.crt", "master.key", "agent.crt", "agent.key")
# The master's names: for this machine, and in the network of agents and trials.
_MASTER_NAMES = (
    x509.DNSName("localhost"),
    x509.DNSName("master"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
)
_VALID = datetime.timedelta(days=7300)


def create_certificates(folder: Path) -> bool:
    """Write the files unless all of them are there; return whether they are new."""
    if all((folder / name).is_file() for name in FILES):
        return False
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Determined cluster on one machine", authority_key)
    signer = (authority, authority_key)
    master_key = ec.generate_private_key(ec.SECP256R1())
    master = _certificate("master", master_key, signer, names=_MASTER_NAMES)
    agent_key = ec.generate_private_key(ec.SECP256R1())
    agent = _certificate("agent", agent_key, signer)
    contents = {
        AUTHORITY: _pem(authority),
        # Trials receive this file as what they trust, so it must contain the authority.
        "master.crt": _pem(master) + _pem(authority),
        "master.key": _pem(master_key),
        "agent.crt": _pem(agent),
        "agent.key": _pem(agent_key),
    }
    for name, content in contents.items():
        write_secret(folder / name, content)
    return True


def delete_certificates(folder: Path) -> None:
    """Delete the files, and the folder if nothing else is in it."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    names: tuple[x509.GeneralName, ...] = (),
) -> x509.Certificate:
    """Return the certificate of an authority, of a server with these names, or of a client.

    Args:
        name: Its common name.
        key: The key that it is for.
        signer: The authority's certificate and key; none for the authority itself.
        names: A server's names; empty for a client.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer_key = signer[1] if signer else key
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # The clocks of containers on one machine agree, but it may be set back.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()),
            critical=False,
        )
        .add_extension(
            x509.BasicConstraints(ca=signer is None, path_length=None if signer else 0),
            critical=True,
        )
        .add_extension(_key_usage(authority=signer is None), critical=True)
    )
    if signer:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer_key, hashes.SHA256())


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(item: x509.Certificate | ec.EllipticCurvePrivateKey) -> str:
    if isinstance(item, x509.Certificate):
        return item.public_bytes(serialization.Encoding.PEM).decode()
    return item.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
