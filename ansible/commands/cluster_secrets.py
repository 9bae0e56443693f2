"""Saves a cluster's secrets in one encrypted file, and brings them back, here or elsewhere.

The file is a tar archive encrypted with a passphrase by age (https://age-encryption.org): without
this project, `age --decrypt FILE | tar --list` reads it. The archive itself is never on disk.
"""

import getpass
import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Annotated

import pyrage
import typer
import yaml
from rich.console import Console

from cocodata.files import write_atomically
from playbooks import CommandError
from tools.secrets_folder import SECRETS, protect_secrets

# Shorter ones can be guessed by someone who has the file.
MINIMUM_LENGTH = 12
AGE = b"age-encryption.org/v1"
ATTEMPTS = 20

# Path below .secrets -> content.
Files = dict[str, bytes]

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
progress = Console(stderr=True, highlight=False)

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="A file whose first line is the passphrase; default: ask for it",
        envvar="PASSPHRASE_FILE",
    ),
]


def read_cluster(cluster: str, folder: Path) -> Files:
    """Return all files of a cluster's secrets; empty if it has none in that folder."""
    found = [path for path in (folder / cluster).rglob("*") if path.is_file()]
    if found:
        # How this machine connects to the cluster.
        found += (folder / "clusters").glob(f"{cluster}.*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def pack(files: Files) -> bytes:
    """Return the files as an archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def unpack(archive: bytes, source: Path) -> tuple[str, Files]:
    """Return the cluster's name and its files.

    Raises:
        CommandError: It is not an archive of one cluster's secrets.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r") as tar:
            files = {entry.name: _content(tar, entry) for entry in tar}
    except tarfile.TarError as error:
        raise CommandError(f"{source} does not contain an archive of secrets") from error
    names = {_cluster_of(name) for name in files}
    if len(names) != 1 or "" in names:
        raise CommandError(f"{source} does not contain the secrets of one cluster: {sorted(files)}")
    return names.pop(), files


def decrypt(content: bytes, passphrase: str, source: Path) -> bytes:
    """Return the archive in an encrypted file.

    Raises:
        CommandError: The passphrase is wrong, or the file is damaged or not of this kind.
    """
    if not content.startswith(AGE):
        raise CommandError(f"{source} is not a file that make cluster-secrets-export wrote")
    for _ in range(ATTEMPTS):
        try:
            return pyrage.passphrase.decrypt(content, passphrase)
        except pyrage.DecryptError as error:
            # It measures this machine each time, to refuse what would take minutes, and is misled
            # if the machine is busy at that moment.
            if "Excessive work" not in str(error):
                raise CommandError(
                    f"{source} cannot be decrypted: the passphrase is wrong, or the file is "
                    "incomplete or damaged"
                ) from error
    raise CommandError(f"{source}: this machine is too slow or too busy to decrypt it")


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry) if entry.isreg() else None
    if file is None:
        raise tarfile.TarError(f"{entry.name} is not a file")
    return file.read()


def _cluster_of(name: str) -> str:
    """Return the name of the cluster that a file of .secrets belongs to, or an empty string."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        return ""
    return path.stem if path.parts[0] == "clusters" else path.parts[0]


def adapted(files: Files, cluster: str, folder: Path) -> Files:
    """Return the files with the path of the certificate authority on this machine."""
    name = f"clusters/{cluster}.yaml"
    if name not in files:
        return files
    connection = yaml.safe_load(files[name])
    if connection.get("certificate"):
        connection["certificate"] = str(folder / cluster / "ca.crt")
    text = "# Written by make cluster-secrets-import.\n" + yaml.safe_dump(
        connection, sort_keys=False
    )
    return {**files, name: text.encode()}


def same(files: Files, others: Files) -> bool:
    """Whether both have the same secrets; how a machine connects to the cluster is none."""

    def secrets_of(all_files: Files) -> Files:
        return {name: data for name, data in all_files.items() if name.split("/")[0] != "clusters"}

    return secrets_of(files) == secrets_of(others)


def install(files: Files, cluster: str, folder: Path) -> None:
    """Write the files with mode 600; the cluster's folder is complete or as it was before."""
    (folder / "clusters").mkdir(mode=0o700, parents=True, exist_ok=True)
    # Its mode is 700.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".import-") as temporary:
        for name, content in files.items():
            file = Path(temporary, "new", name)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(file, content, mode=0o600)
        if read_cluster(cluster, Path(temporary, "new")) != files:
            raise CommandError(f"{folder} does not keep what is written to it: is its disk full?")
        if (folder / cluster).exists():
            (folder / cluster).rename(Path(temporary, "old"))
        try:
            Path(temporary, "new", cluster).rename(folder / cluster)
        except OSError:
            shutil.move(Path(temporary, "old"), folder / cluster)
            raise
        for file in Path(temporary, "new", "clusters").glob("*"):
            file.replace(folder / "clusters" / file.name)
    protect_secrets(folder)


def read_passphrase(file: Path | None, *, twice: bool) -> str:
    """Read the passphrase from a file, or ask for it on the terminal.

    Raises:
        CommandError: There is none, it is too short, or the second one differs.
    """
    if file is not None:
        try:
            passphrase = file.read_text().partition("\n")[0]
        except OSError as error:
            raise CommandError(f"PASSPHRASE_FILE={file}: {error.strerror}") from error
    elif sys.stdin.isatty():
        passphrase = getpass.getpass("Passphrase: ")
        if twice and getpass.getpass("The same again: ") != passphrase:
            raise CommandError("the passphrases differ")
    else:
        raise CommandError("there is no terminal to ask for the passphrase: set PASSPHRASE_FILE=")
    if twice and len(passphrase) < MINIMUM_LENGTH:
        raise CommandError(f"the passphrase is shorter than {MINIMUM_LENGTH} characters")
    return passphrase


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The file to write, such as main.age")],
    cluster: Annotated[str, typer.Option(help="The cluster's name", envvar="CLUSTER")] = "main",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write a cluster's secrets into one encrypted file."""
    protect_secrets(SECRETS)
    files = read_cluster(cluster, SECRETS)
    if not files:
        raise CommandError(f"there is no folder {SECRETS / cluster}: name the cluster by CLUSTER=")
    if out.exists():
        raise CommandError(f"{out} exists already: choose another name, or delete it")
    if not out.absolute().parent.is_dir():
        raise CommandError(f"there is no folder {out.absolute().parent}")
    passphrase = read_passphrase(passphrase_file, twice=True)
    content = pyrage.passphrase.encrypt(pack(files), passphrase)
    # What cannot be read again is worth nothing.
    if unpack(decrypt(content, passphrase, out), out) != (cluster, files):
        raise CommandError("the encrypted file does not contain what was put in")
    write_atomically(out, content, mode=0o600)
    progress.print(f"{out} has the {len(files)} secrets of the cluster {cluster}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A file that an export wrote")],
    passphrase_file: PassphraseFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace different secrets of the same cluster")
    ] = False,
) -> None:
    """Bring the secrets of an encrypted file to this machine's .secrets."""
    if not source.is_file():
        raise CommandError(f"IN={source} is not a file")
    content = source.read_bytes()
    passphrase = read_passphrase(passphrase_file, twice=False)
    cluster, files = unpack(decrypt(content, passphrase, source), source)
    files = adapted(files, cluster, SECRETS)
    present = read_cluster(cluster, SECRETS)
    if present and same(present, files):
        progress.print(f"the secrets of the cluster {cluster} are here already")
        return
    if present and not force:
        raise CommandError(
            f"{SECRETS / cluster} has different secrets, maybe of another cluster of that name; "
            "they stay. To replace them: FORCE=yes"
        )
    install(files, cluster, SECRETS)
    progress.print(f"{SECRETS / cluster} has the secrets of the cluster {cluster}")


def main() -> None:
    """Run the command line; an error is one line, not a traceback."""
    try:
        app()
    except CommandError as error:
        sys.exit(f"error: {error}")
    except PermissionError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
