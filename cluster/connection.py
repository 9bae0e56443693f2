"""Where a cluster is and how to log in: one file a cluster, and the session that it gives.

`.secrets/clusters/NAME.yaml` is written by `make local-up` (NAME is local) or by the Ansible
playbook (NAME is main), readable by its owner only:

    master: https://10.0.0.1:8443
    user: determined
    password: ...
    certificate: /path/to/ca.pem        # where TLS is used with a private authority
    template: name of the Determined template that holds what belongs to the cluster
    data: /data/coco                    # the data set's folder on the cluster's hosts

Beside it, `NAME.versions` holds the version of the data set in each folder of the hosts, as
`make coco-sync` has brought it there:

    /data/coco: 44c949...
"""

import contextlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import requests
import yaml
from determined.common import api
from determined.common.api import authentication, certs
from determined.experimental import Determined

from cluster.errors import ClusterError
from cocodata.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".secrets" / "clusters"


@dataclass(frozen=True)
class MasterConnection:
    """One cluster's address and login."""

    name: str
    master: str
    user: str
    password: str
    template: str
    data: str
    certificate: str | None = None
    # Folder on the hosts -> the version that a trial must find there.
    versions: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The variables that make Determined's own command line talk to this cluster."""
        variables = {"DET_MASTER": self.master, "DET_USER": self.user, "DET_PASS": self.password}
        if self.certificate:
            variables["DET_MASTER_CERT_FILE"] = self.certificate
            # Where one of these is set, requests believes it and not what Determined asks for.
            variables["REQUESTS_CA_BUNDLE"] = variables["CURL_CA_BUNDLE"] = self.certificate
        return variables

    def login(self) -> Determined:
        """Log in to the master.

        Raises:
            ClusterError: The master does not answer, or refuses the user.
        """
        logging.getLogger("determined").setLevel(logging.WARNING)
        if self.certificate:
            os.environ.update(self.environment())
        cert = certs.default_load(self.master, explicit_path=self.certificate)
        with explained(self):
            session = authentication.login(self.master, self.user, self.password, cert=cert)
        return Determined._from_session(session)


def connection_file(name: str) -> Path:
    """The file that describes the cluster of a name."""
    return FOLDER / f"{name}.yaml"


def _versions_file(name: str) -> Path:
    return FOLDER / f"{name}.versions"


def forget_connection(name: str) -> None:
    """Remove a cluster's files."""
    for file in (connection_file(name), _versions_file(name)):
        file.unlink(missing_ok=True)


def load_connection(name: str) -> MasterConnection:
    """Read a cluster's file.

    Raises:
        ClusterError: There is no such cluster, or its file is incomplete or open to others.
    """
    file = connection_file(name)
    if not file.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        raise ClusterError(
            f"no cluster named {name!r} is known here"
            + (f" (there is: {', '.join(known)}; choose with CLUSTER=)" if known else "")
            + ". Start one: make local-up (this machine; then CLUSTER=local) or make cluster-up"
        )
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ClusterError(f"{file} holds a password and can be read by others: chmod 600 {file}")
    content = yaml.safe_load(file.read_text())
    versions = _versions_file(name)
    known = yaml.safe_load(versions.read_text()) if versions.is_file() else {}
    try:
        return MasterConnection(name=name, versions=known, **content)
    except TypeError as error:
        raise ClusterError(f"{file} is not a cluster's file ({error}); write it anew") from error


def save_connection(connection: MasterConnection) -> Path:
    """Write a cluster's files, readable by their owner only; return where the first one is."""
    content = {key: value for key, value in asdict(connection).items() if value is not None}
    del content["name"]
    write_secret(_versions_file(connection.name), yaml.safe_dump(dict(content.pop("versions"))))
    file = connection_file(connection.name)
    write_secret(file, yaml.safe_dump(content, sort_keys=False))
    return file


def write_secret(file: Path, text: str) -> None:
    """Write a file with mode 600 in a folder with mode 700."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.parent != ROOT:
        file.parent.chmod(0o700)
    write_atomically(file, text, mode=0o600)


@contextlib.contextmanager
def explained(connection: MasterConnection) -> Iterator[None]:
    """Turn failures of talking to the master into errors that say what to do."""
    try:
        yield
    except (api.errors.MasterNotFoundException, requests.exceptions.ConnectionError) as error:
        raise ClusterError(
            f"the master at {connection.master} does not answer. Is it running? "
            f"{'make local-up' if connection.name == 'local' else 'make cluster-status'} tells"
        ) from error
    except (api.errors.UnauthenticatedException, api.errors.ForbiddenException) as error:
        raise ClusterError(
            f"the master at {connection.master} refuses the user {connection.user!r} with the "
            f"password in {connection_file(connection.name)}"
        ) from error
    except api.errors.APIException as error:
        raise ClusterError(f"the master at {connection.master} answers: {error}") from error
