"""Logins of coco-sync: passwords for ssh and sudo, and the number of open files."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cocodata import DatasetError
from cocodata.sync.hosts import agent_environment, host_from_inventory
from cocodata.sync.limits import raise_open_files

SECRET = "se'cret $word"  # pragma: allowlist secret


def test_ssh_gets_its_password_and_nothing_else_shows_it() -> None:
    host = host_from_inventory("a", "10.0.0.1", user="x", login_password=SECRET)
    assert SECRET not in repr(host)
    assert SECRET not in " ".join(host.command)
    assert "BatchMode=no" in host.command
    # No question about a host's key is answered with the password.
    assert "StrictHostKeyChecking=yes" in host.command
    with agent_environment(host) as environment:
        assert SECRET not in str(environment)

        def ask(question: str) -> subprocess.CompletedProcess[str]:
            command = [environment["SSH_ASKPASS"], question]
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )

        assert ask("x@10.0.0.1's password: ").stdout == SECRET
        assert ask("x@10.0.0.1's password: ").stdout == SECRET  # Of the next connection.
        refused = ask("Enter passphrase for key '/home/x/.ssh/id_ed25519': ")
        assert (refused.stdout, refused.returncode) == ("", 1)
        assert "passphrase" in refused.stderr
    assert not Path(environment["COCO_PASSWORD"]).exists()


def test_without_a_password_ssh_asks_nobody() -> None:
    host = host_from_inventory("a", "10.0.0.1", user="x")
    assert "BatchMode=yes" in host.command
    with agent_environment(host) as environment:
        assert "COCO_PASSWORD" not in environment


def test_sudo_reads_its_password_on_this_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    host = host_from_inventory("here", "10.0.0.1", connection="local", password=SECRET)
    assert host.command == ("sudo", "-S", "-p", "", "/usr/bin/python3")
    assert host.password == SECRET
    without = host_from_inventory("here", "10.0.0.1", connection="local")
    assert without.command[:2] == ("sudo", "-n")


@pytest.mark.parametrize(("hosts", "refused"), [(100, False), (1000, True)])
def test_open_files(hosts: int, refused: bool) -> None:
    """In a process of its own, whose limits a shell sets: 256, and 1,024 at most."""
    script = (
        "import resource; from cocodata.sync.limits import raise_open_files;"
        f"raise_open_files({hosts}); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    limited = f'ulimit -Sn 256; ulimit -Hn 1024; exec "{sys.executable}" -c "$0"'
    shell = ["sh", "-c", limited, script]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    if refused:
        assert "1000 hosts need 5200 open files, and this machine allows 1024" in done.stderr
    else:
        assert done.stdout.strip() == "(1024, 1024)", done.stderr


def test_open_files_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = (1024, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    changed = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changed.append(limits))
    raise_open_files(100_000)
    assert changed == [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    with pytest.raises(DatasetError, match="500200"):
        raise_open_files(100_000)
