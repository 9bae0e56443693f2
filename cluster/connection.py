"""The address of a cluster, and how to log in.

`.secrets/clusters/NAME.yaml` is written by `make local-up` (NAME is local) or by Ansible (NAME is
main), with mode 600:

    master: https://10.0.0.1:8443
    user: determined
    password: ...                       # of a user who is not an administrator
    certificate: /path/to/ca.pem        # only for TLS with a private certificate authority
    template: name of the cluster's Determined template
    data: /data/coco                    # the data set's folder on the cluster's hosts

`NAME.versions`, in the same folder, holds the version of the data set in each folder on the hosts,
as written by `make coco-sync`:

    /data/coco: 44c949...

`NAME.login` holds how this machine logs in to the master's host, without passwords, in case it
reaches the master's port only by SSH. `.NAME.token` keeps the token of the last login.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
import yaml
from determined.common import api
from determined.common.api import authentication, bindings, certs
from determined.experimental import Determined

from cluster.errors import ClusterError
from cluster.tokens import TokenFile
from cluster.tunnel import reachable_address
from cocodata.errors import DatasetError
from cocodata.files import write_atomically
from cocodata.sync.hosts import Host, read_hosts
from experiments.runtime.determined_internals import client_of
from tools.secrets_folder import SECRETS, protect_secrets

ROOT = Path(__file__).resolve().parent.parent
FOLDER = SECRETS / "clusters"


@dataclass(frozen=True)
class MasterConnection:
    """Address and login of a cluster."""

    name: str
    master: str
    user: str
    password: str
    template: str
    data: str
    certificate: str | None = None
    # Folder on the hosts -> version of the data set that trials expect in it.
    versions: Mapping[str, str] = field(default_factory=dict)
    # Where the password was read from; None for the connection file.
    password_file: Path | None = None
    # The master's host; None if this machine needs no SSH to reach the master.
    login_host: Host | None = None
    # Where tokens of logins are kept; None to log in each time.
    token_file: Path | None = field(default=None, compare=False)

    @property
    def address(self) -> str:
        """The address at which this machine reaches the master, maybe of a tunnel to it.

        Raises:
            ClusterError: The master's host refuses the login.
        """
        return reachable_address(self.master, self.login_host)

    @property
    def certificate_name(self) -> str | None:
        """The name in the master's certificate, where it is not the address."""
        return None if self.address == self.master else urlsplit(self.master).hostname

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which `det` talks to this cluster."""
        variables = {"DET_MASTER": self.address, "DET_USER": self.user, "DET_PASS": self.password}
        if self.certificate:
            variables["DET_MASTER_CERT_FILE"] = self.certificate
            variables |= self._bundles()
        if self.certificate_name:
            variables["DET_MASTER_CERT_NAME"] = self.certificate_name
        return variables

    def _bundles(self) -> dict[str, str]:
        # If one of these is set, requests ignores the certificate that Determined passes.
        names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        return dict.fromkeys(names, self.certificate) if self.certificate else {}

    def session(self) -> api.Session:
        """Return a session for calls to the master's API; the first call logs in.

        Raises:
            ClusterError: The master does not answer, or rejects the user.
        """
        return self._session

    @functools.cached_property
    def _session(self) -> api.Session:
        logging.getLogger("determined").setLevel(logging.WARNING)
        os.environ.update(self._bundles())
        cert = certs.default_load(
            self.address,
            explicit_path=self.certificate,
            explicit_cert_name=self.certificate_name,
        )
        with translate_errors(self):
            tokens = None
            if self.token_file is not None:
                tokens = TokenFile(self.token_file, self.master, self.user, self.password)
                token = tokens.read()
                if token is not None:
                    session = api.Session(self.address, self.user, token, cert)
                    if _is_accepted(session):
                        return session
            session = authentication.login(self.address, self.user, self.password, cert=cert)
            if tokens is not None:
                tokens.write(session.token)
            return session

    def login(self) -> Determined:
        """Return Determined's client, with the same session.

        Raises:
            ClusterError: The master does not answer, or rejects the user.
        """
        return client_of(self.session())


def _is_accepted(session: api.Session) -> bool:
    """Return whether the master still knows a session's token."""
    try:
        bindings.get_GetMe(session)
    except api.errors.UnauthenticatedException:
        return False
    return True


def connection_file(name: str) -> Path:
    """Return the path of a cluster's connection file."""
    return FOLDER / f"{name}.yaml"


def _versions_file(name: str) -> Path:
    return FOLDER / f"{name}.versions"


def _login_file(name: str) -> Path:
    return FOLDER / f"{name}.login"


def _token_file(name: str) -> Path:
    # Hidden, so that it is not among the secrets that are saved.
    return FOLDER / f".{name}.token"


def delete_connection(name: str) -> None:
    """Delete a cluster's files."""
    files = (connection_file(name), _versions_file(name), _login_file(name), _token_file(name))
    for file in files:
        file.unlink(missing_ok=True)


def load_connection(name: str) -> MasterConnection:
    """Read a cluster's connection and versions files.

    Raises:
        ClusterError: There is no such cluster, or its file is invalid or belongs to another user.
    """
    file = connection_file(name)
    if not file.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        raise ClusterError(
            f"unknown cluster {name!r}"
            + (f" (known: {', '.join(known)}; choose one with CLUSTER=)" if known else "")
            + ". To start one: make local-up (on this machine; then CLUSTER=local) or make "
            "cluster-up"
        )
    _protect()
    content = yaml.safe_load(file.read_text())
    versions = _versions_file(name)
    known = yaml.safe_load(versions.read_text()) if versions.is_file() else {}
    login = _login_file(name)
    try:
        host = read_hosts(login)[0] if login.is_file() else None
        return MasterConnection(
            name=name, versions=known, login_host=host, token_file=_token_file(name), **content
        )
    except (TypeError, DatasetError) as error:
        remedy = "make local-up" if name == "local" else "make cluster-up"
        raise ClusterError(
            f"{file} is not a valid connection file ({error}); {remedy} rewrites it"
        ) from error


def save_connection(connection: MasterConnection) -> Path:
    """Write a cluster's files with mode 600; return the path of the connection file."""
    content = {key: value for key, value in asdict(connection).items() if value is not None}
    for key in ("name", "password_file", "login_host", "token_file"):
        content.pop(key, None)
    write_secret(_versions_file(connection.name), yaml.safe_dump(dict(content.pop("versions"))))
    file = connection_file(connection.name)
    write_secret(file, yaml.safe_dump(content, sort_keys=False))
    return file


def write_secret(file: Path, text: str) -> None:
    """Write a file with mode 600; in .secrets, all folders get mode 700."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, text, mode=0o600)
    _protect()


def _protect() -> None:
    try:
        protect_secrets(FOLDER.parent)
    except PermissionError as error:
        raise ClusterError(
            f"{error.filename} belongs to another user: make it yours with chown"
        ) from error


@contextlib.contextmanager
def translate_errors(connection: MasterConnection) -> Iterator[None]:
    """Turn errors from the master's API into ClusterErrors that say what to do."""
    try:
        yield
    except (api.errors.MasterNotFoundException, requests.exceptions.ConnectionError) as error:
        raise ClusterError(
            f"the master at {connection.master} does not answer. To "
            + (
                "start it: make local-up"
                if connection.name == "local"
                else "check it: make cluster-status"
            )
        ) from error
    except (api.errors.UnauthenticatedException, api.errors.ForbiddenException) as error:
        raise ClusterError(
            f"the master at {connection.master} rejects user {connection.user!r} with the "
            f"password in {connection.password_file or connection_file(connection.name)}"
        ) from error
    except api.errors.APIException as error:
        raise ClusterError(
            f"the master at {connection.master} returned an error: {error}"
        ) from error
