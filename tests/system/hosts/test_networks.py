"""Preflight on hosts of many shapes: jump host, forwarded port, passwords, names, bare systems.

Takes a minute or two, on two hosts of its own. Like the other tests here it runs only where
TEST_HOSTS=yes asks for it (`make test-hosts`).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.hosts import hosts as test_hosts
from tests.system.hosts.testing import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

NETWORK, SUBNET = "test-shapes", "10.79.0.0/24"
ADDRESSES = {"outer": "10.79.0.11", "inner": "10.79.0.12"}
PORT = 22079
SUDO = "a sudo password"  # pragma: allowlist secret


def _docker(*arguments: str, text: str = "") -> str:
    command = ["docker", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _on(host: str, script: str) -> str:
    return _docker("exec", f"shape-{host}", "sh", "-ec", script)


def _start(host: str, key: Path) -> str:
    """Start a host; return its SSH key. The port of `outer` is forwarded by this machine."""
    forward = [f"--publish=127.0.0.1:{PORT}:22"] if host == "outer" else []
    _docker(
        *("run", "--detach", f"--name=shape-{host}", f"--hostname={host}"),
        *(f"--network={NETWORK}", f"--ip={ADDRESSES[host]}", *forward),
        *(*test_hosts.HOST_OPTIONS, test_hosts.IMAGE),
    )
    home = f"/home/{test_hosts.USER}/.ssh"
    script = f"install -d -m 700 -o {test_hosts.USER} {home} && cat >{home}/authorized_keys"
    public = key.with_suffix(".pub").read_text()
    _docker("exec", "--interactive", f"shape-{host}", "sh", "-c", script, text=public)
    command = ["docker", "exec", f"shape-{host}", "cat", "/etc/ssh/ssh_host_ed25519_key.pub"]
    return " ".join(test_hosts._wait(f"{host}'s SSH key", 120, command).split()[:2])


def _remove() -> None:
    names = [f"shape-{host}" for host in ADDRESSES]
    for command in (["rm", "--force", "--volumes", *names], ["network", "rm", NETWORK]):
        subprocess.run(["docker", *command], capture_output=True, check=False)


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The variables of the two hosts, as one would write them."""
    if os.environ.get("TEST_HOSTS") != "yes":
        pytest.skip("make test-hosts runs it")
    if reason := test_hosts.why_unavailable():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("shapes")
    test_hosts.build()
    key = test_hosts._key()
    _remove()
    try:
        _docker("network", "create", f"--subnet={SUBNET}", NETWORK)
        known = folder / "known_hosts"
        keys = {host: _start(host, key) for host in ADDRESSES}
        known.write_text(
            f"[127.0.0.1]:{PORT} {keys['outer']}\n{ADDRESSES['inner']} {keys['inner']}\n"
        )
        for host in ADDRESSES:
            _on(
                host,
                f"echo '{test_hosts.USER}:{SUDO}' | chpasswd;"
                f"echo '{test_hosts.USER} ALL=(ALL) ALL' >/etc/sudoers.d/admin",
            )
        # Debian without any choice in the installer.
        _on("inner", "apt-get purge --yes --quiet python3 python3-minimal && ! ls /usr/bin/python3")
        _on(
            "inner",
            'mkdir -p /etc/docker /mnt/docker; echo \'{"data-root": "/mnt/docker"}\' '
            ">/etc/docker/daemon.json",
        )
        login = f"-i {key} -o UserKnownHostsFile={known}"
        jump = f"ssh {login} -p {PORT} -W %h:%p {test_hosts.USER}@127.0.0.1"
        common = f"-o UserKnownHostsFile={known}"
        yield {
            "all": {
                "ansible_user": test_hosts.USER,
                "ansible_ssh_private_key_file": str(key),
                "ansible_ssh_common_args": common,
                **{"cluster_name": "test-shapes", "task_image": "trial:1"},
                **{"image_disk_gb": 1, "data_disk_gb": 0, "memory_gb": 1},
            },
            "outer": {
                "ansible_host": "127.0.0.1",
                "ansible_port": PORT,
                "cluster_address": ADDRESSES["outer"],
                "ansible_become_pass": SUDO,
            },
            "inner": {
                "ansible_host": ADDRESSES["inner"],
                "ansible_ssh_common_args": f"{common} -o ProxyCommand='{jump}'",
                "ansible_become_password": SUDO,
                "trial_interface": SUBNET,
            },
        }
    finally:
        _remove()


@pytest.fixture
def preflight(
    variables: dict[str, Any], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the checks with changed variables of `outer` and `inner`."""

    def run(*arguments: str, **changes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        hosts = {host: {**variables[host], **changes.get(host, {})} for host in ADDRESSES}
        groups = {"master": {"hosts": {"outer": {}}}, "agents": {"hosts": hosts}}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(
            yaml.safe_dump({"all": {"vars": variables["all"], "children": groups}})
        )
        command = [sys.executable, "ansible/commands/hosts.py", "up", "--inventory", str(inventory)]
        return subprocess.run(
            [*command, "--", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    return run


def _printed(outcome: subprocess.CompletedProcess[str]) -> str:
    # YAML doubles a quote within quotes.
    return " ".join((outcome.stdout + outcome.stderr).split()).replace("''", "'")


def test_a_host_without_python_is_named_and_not_changed_by_a_check(
    preflight: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    outcome = preflight("--check")
    assert "FAIL inner: SSH: The module interpreter" in _printed(outcome)
    assert _on("inner", "ls /usr/bin/python3 || true") == ""


def test_each_problem_is_refused_with_its_remedy(
    preflight: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """It installs python3, which the checks need, and nothing else."""
    _on("outer", "echo 127.0.1.1 outer-name >>/etc/hosts")
    _on("inner", f"echo {ADDRESSES['outer']} outer-name >>/etc/hosts")
    outcome = preflight(
        outer={"cluster_address": "outer-name", "ansible_become_pass": "wrong"},
        inner={"trial_interface": "10.1.2.0/24", "cluster_address": "fd00::2"},
    )
    assert outcome.returncode != 0
    printed = _printed(outcome)
    assert "FAIL outer: privileges" in printed
    assert "FAIL outer: addresses: the name outer-name leads to outer's loopback" in printed
    assert (
        "FAIL inner: trial_interface: no interface is or has an address in 10.1.2.0/24" in printed
    )
    assert "addresses of inner are IPv6" in printed
    assert "FAIL outer: network: cannot reach inner at fd00::2:22" in printed
    assert _on("inner", "ls /usr/bin/python3") == "/usr/bin/python3"
    assert _on("inner", "ls -d /etc/determined /usr/bin/dockerd 2>&1 || true").count("No such") == 2


def test_these_hosts_work_and_a_check_of_bare_ones_changes_nothing(
    preflight: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    outcome = preflight("--check", "-vvv")
    printed = _printed(outcome)
    assert outcome.returncode == 0, printed
    assert "checks of 2 host(s) passed" in printed
    assert "inner has nothing of the cluster yet" in printed
    assert printed.count("changed=0") == 2
    assert SUDO not in printed
