"""A host with GPUs, as far as that goes without one: recorded nvidia-smi, bus and toolkit.

The engine, the play, the package manager and Determined's master and agent are real. Like the other
tests here it runs only where TEST_HOSTS=yes asks for it (`make test-hosts`).
"""

import contextlib
import functools
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ansible.gpu_hosts import SCENARIOS, Scenario
from tests.system.hosts import hosts as test_hosts
from tests.system.hosts import toolkit
from tests.system.hosts.testing import (
    BUNDLE,
    PROXY,
    SMALL_IMAGE,
    Hosts,
    changed_tasks,
    on_host,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

PORT = 18077
REPOSITORY = f"http://{test_hosts.GATEWAY}:{PORT}/stable/deb"
GPUS = SCENARIOS["RTX 4090 x2"]
OURS = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"


def _replay(folder: Path, scenario: Scenario) -> None:
    """Give the host another nvidia-smi."""
    script = folder / "now"
    scenario.install(script)
    (script / "bin/nvidia-smi").rename(folder / "nvidia-smi")
    on_host(1, "install -m 755 /srv/gpus/nvidia-smi /usr/bin/nvidia-smi")
    for file in sorted(script.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def _words(outcome: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed, without Ansible's line breaks."""
    return " ".join((outcome.stdout + outcome.stderr).split())


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[None]:
    """Serve a folder to the hosts."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer((test_hosts.GATEWAY, PORT), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the host has at /srv/gpus."""
    folder = tmp_path_factory.mktemp("gpus")
    GPUS.install(folder)
    return folder


@pytest.fixture(scope="module")
def host(gpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A bare host with two GPUs, and the inventory of it alone."""
    if os.environ.get("TEST_HOSTS") != "yes":
        pytest.skip("make test-hosts runs it")
    if BUNDLE or PROXY:
        pytest.skip("the stand-in's archive is reached neither by a bundle nor through the proxy")
    if reason := test_hosts.why_unavailable():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("host")
    web = toolkit.make_archive(tmp_path_factory.mktemp("toolkit"))
    options = [f"--volume={gpus}/pci:/sys/bus/pci/devices:ro", f"--volume={gpus}:/srv/gpus:ro"]
    with test_hosts.hosts(1, options=options), _served(web):
        cluster = Hosts(folder, {"task_image": SMALL_IMAGE} if SMALL_IMAGE else {})
        for name in ("host2", "host3"):
            del cluster.agents[name]
        cluster.settings["nvidia_toolkit_repository"] = REPOSITORY
        cluster.write()
        on_host(1, "install -m 755 /srv/gpus/bin/nvidia-smi /usr/bin/nvidia-smi")
        yield cluster


def test_gpus_become_slots(host: Hosts) -> None:
    host.succeed("up", "--", "--check")
    host.succeed("up")
    assert [each["slots"] for each in host.status()["hosts"]] == [2]
    assert "slot_type: cuda" in on_host(1, "cat /etc/determined/agent.yaml")
    # Docker finds the hook at its start only.
    on_host(1, "docker run --rm --gpus all --entrypoint nvidia-smi $(docker images -q | head -n 1)")
    on_host(1, f"grep -q '^system create-dev-char-symlinks' {toolkit.CALLS}")
    assert GPUS.driver is not None
    assert GPUS.driver in on_host(1, "cat /etc/cdi/nvidia.yaml")
    assert on_host(1, f"test -f {OURS} && apt-get update 2>&1").count("Err") == 0


def test_a_second_converge_changes_nothing_and_reloads_nothing(host: Hosts) -> None:
    reloads = "journalctl --boot --no-pager | grep -c 'systemd.*: Reloading' || true"
    before = on_host(1, reloads)
    recap = host.succeed("up")
    assert changed_tasks(recap) == {"host1": 0}
    # A reload of systemd takes GPUs away from running containers on some hosts.
    assert on_host(1, reloads) == before
    host.succeed("up", "--", "--check")


def test_a_package_source_of_the_hosts_own_stays_alone(host: Hosts) -> None:
    """apt fails for all packages if two sources of one URI have different keys."""
    on_host(
        1,
        "cp /etc/apt/keyrings/nvidia-container-toolkit.asc /usr/share/keyrings/nvidia-own.asc;"
        "echo 'deb [signed-by=/usr/share/keyrings/nvidia-own.asc] "
        f"{REPOSITORY}/$(ARCH) /' >/etc/apt/sources.list.d/nvidia-own.list",
    )
    broken = on_host(1, "apt-get update 2>&1 || true")
    assert "Conflicting values set for option Signed-By" in broken
    host.succeed("up")
    assert on_host(1, f"test ! -e {OURS} && apt-get update 2>&1").count("Err") == 0
    assert changed_tasks(host.succeed("up")) == {"host1": 0}


def test_devices_are_described_anew_for_another_driver(host: Hosts, gpus: Path) -> None:
    _replay(gpus, replace(GPUS, driver="590.44.01"))
    host.succeed("up")
    assert "590.44.01" in on_host(1, "cat /etc/cdi/nvidia.yaml")


def test_a_display_card_is_no_slot(host: Hosts, gpus: Path) -> None:
    _replay(gpus, SCENARIOS["RTX 4090 and GT 1030"])
    outcome = host.run("up")
    assert outcome.returncode != 0
    assert 'gpu_names: ["NVIDIA GeForce RTX 4090"]' in _words(outcome)
    host.settings["gpu_names"] = ["RTX 4090"]
    host.write()
    try:
        host.succeed("up")
        assert [each["slots"] for each in host.status()["hosts"]] == [1]
    finally:
        del host.settings["gpu_names"]
        host.write()
        _replay(gpus, GPUS)


@pytest.mark.parametrize("package", ["", "nvidia-driver"])
def test_a_failing_driver_stops_the_run_and_changes_nothing(
    host: Hosts, gpus: Path, package: str
) -> None:
    _replay(gpus, SCENARIOS["driver upgraded without a reboot"])
    state = "cat /proc/sys/kernel/random/boot_id /etc/determined/agent.yaml; docker ps --quiet"
    before = on_host(1, state)
    try:
        outcome = host.run("up", "--", "--extra-vars", f"nvidia_driver_package={package}")
        assert outcome.returncode != 0
        assert "Driver/library version mismatch" in _words(outcome)
        assert "make cluster-drain HOST=host1, reboot it" in _words(outcome)
        assert on_host(1, state) == before
    finally:
        _replay(gpus, GPUS)


def test_an_old_driver_is_not_replaced_under_a_trial(host: Hosts, gpus: Path) -> None:
    _replay(gpus, replace(GPUS, driver="535.247.01"))
    on_host(
        1,
        "docker run --detach --name=trial --label=ai.determined.container.type=task-container "
        "--entrypoint=sleep $(docker images --quiet | head -n 1) 600",
    )
    boot = on_host(1, "cat /proc/sys/kernel/random/boot_id")
    try:
        for package, reason in (
            ("sl", "sl is version"),
            (toolkit.DRIVER, "1 container(s) of trials run there"),
        ):
            outcome = host.run("up", "--", "--extra-vars", f"nvidia_driver_package={package}")
            assert outcome.returncode != 0
            assert reason in _words(outcome)
            assert on_host(1, f"dpkg-query --show {package} 2>/dev/null || true") == ""
        assert on_host(1, "cat /proc/sys/kernel/random/boot_id") == boot
    finally:
        on_host(1, "docker rm --force trial")
        _replay(gpus, GPUS)


def test_down_leaves_a_clean_host(host: Hosts) -> None:
    host.succeed("down", "--yes")
    left = on_host(
        1, "ls /etc/systemd/system/determined-* /etc/apt/apt.conf.d/*determined* || true"
    )
    assert left == ""
