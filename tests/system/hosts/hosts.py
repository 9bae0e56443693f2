"""Test hosts: containers that behave like machines, with systemd, sshd and their own engine.

`python tests/system/hosts/hosts.py up 3` makes host1 to host3 of ansible/inventories/test-hosts.yml
and waits until each lets the user in by SSH; `down` removes them with their volumes. The image of
the hosts is made once by debootstrap (as root), from the mirror that DEBIAN_MIRROR names.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[3]
# The inventory names the key and the known hosts in here.
STATE = ROOT / ".cache/test-hosts"
NETWORK = "test-hosts"
SUBNET = "10.77.0.0/24"
# This machine on their network.
GATEWAY = "10.77.0.1"
PROXY_PORT = 8888
PROXY_URL = f"http://{GATEWAY}:{PROXY_PORT}"
SHARED_VOLUME = "test-hosts-shared"
USER = "admin"
# What a machine has after a minimal installation of Debian with "SSH server" chosen.
PACKAGES = (
    "systemd-sysv,dbus,openssh-server,sudo,python3,iproute2,kmod,ca-certificates,"
    "iputils-ping,procps"
)
# Another set of packages is another image.
IMAGE = f"test-host:bookworm-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
# A container is a whole host with these. --privileged would ask for every capability, of which an
# engine in a sandbox has not all; ALL asks for those that it has.
HOST_OPTIONS = [
    "--cap-add=ALL",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
    "--device-cgroup-rule=a *:* rwm",
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--tmpfs=/tmp",
    "--stop-signal=SIGRTMIN+3",
]

# Enough for the data sets of nine hosts: loop devices are the kernel's, which all hosts share.
LOOP_DEVICES = 32
_LOOP_CTL_ADD = 0x4C80  # linux/loop.h

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


class HostsUnavailableError(RuntimeError):
    """This machine cannot run test hosts; the message says why."""


def _run(*command: str, quiet: bool = True) -> str:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=None if not quiet else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        message = (done.stderr or done.stdout or "").strip()
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}): {message}")
    return done.stdout.strip()


def why_unavailable() -> str | None:
    """Return why this machine cannot run test hosts, or None."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers"
    if not _image_exists():
        if os.geteuid() != 0:
            return "the hosts' image does not exist yet, and debootstrap needs root to make it"
        if shutil.which("debootstrap") is None:
            return "debootstrap is not installed"
    return None


def _image_exists() -> bool:
    command = ["docker", "image", "inspect", IMAGE]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _own_mirror(release: str) -> str:
    # Not a package: its folder has the name of Ansible itself.
    script = Path(__file__).resolve().parents[3] / "ansible/commands/bundle_packages.py"
    mirror: str = runpy.run_path(str(script))["own_mirror"](release)
    return mirror


@app.command()
def build() -> None:
    """Make the hosts' image unless it exists."""
    if _image_exists():
        return
    if reason := why_unavailable():
        raise HostsUnavailableError(reason)
    with tempfile.TemporaryDirectory(prefix="test-host-") as folder:
        root = Path(folder) / "root"
        # The mirror that this machine uses, unless another is named.
        mirror = os.environ.get("DEBIAN_MIRROR") or _own_mirror("bookworm")
        print(f"debootstrap from {mirror}", flush=True)
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        _run("debootstrap", *options, "bookworm", str(root), mirror)
        (root / "etc/apt/sources.list").write_text(
            f"deb {mirror} bookworm main\n"
            f"deb {mirror} bookworm-updates main\n"
            f"deb {mirror}-security bookworm-security main\n"
        )
        # Each host makes keys of its own when it first starts.
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        (root / "etc/systemd/system/ssh.service.d").mkdir()
        (root / "etc/systemd/system/ssh.service.d/keys.conf").write_text(
            "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\n"
            "ExecStartPre=/usr/sbin/sshd -t\n"
        )
        (root / "etc/sudoers.d/admin").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        _run("chroot", str(root), "useradd", "--create-home", "--shell=/bin/bash", USER)
        tar = subprocess.Popen(
            ["tar", "-C", str(root), "--exclude=./var/cache/apt/*", "-c", "."],
            stdout=subprocess.PIPE,
        )
        subprocess.run(
            ["docker", "import", "--change", 'CMD ["/sbin/init"]', "-", IMAGE],
            stdin=tar.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        if tar.wait():
            raise RuntimeError("tar could not read the new system")


def _key() -> Path:
    """Return the key that opens all test hosts; make it on first use."""
    STATE.mkdir(parents=True, exist_ok=True)
    key = STATE / "id_ed25519"
    if not key.exists():
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    return key


def _wait(what: str, seconds: float, command: list[str]) -> str:
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: nothing after {seconds:.0f} s: {done.stderr.strip()}")
        time.sleep(0.5)


def address(number: int) -> str:
    """Return the address of host<number>."""
    return SUBNET.replace(".0/24", f".{10 + number}")


def start(number: int, *, internet: bool = True, options: Sequence[str] = ()) -> str:
    """Start host<number>; return its name.

    Args:
        number: The host's number.
        internet: Whether it reaches more than its peers.
        options: Further options of `docker run`.
    """
    name = f"host{number}"
    _network(internet)
    key = _key()
    _run(
        "docker",
        "run",
        "--detach",
        f"--name={name}",
        f"--hostname={name}",
        f"--network={NETWORK}",
        f"--ip={address(number)}",
        f"--volume={name}-docker:/var/lib/docker",
        f"--volume={SHARED_VOLUME}:/mnt/shared",
        "--label=test-hosts",
        *options,
        *HOST_OPTIONS,
        *_loop_devices(),
        IMAGE,
    )
    _admit(name, key)
    return name


def _loop_devices() -> list[str]:
    """Return the options that let a host mount images of file systems, as a machine can."""
    control = Path("/dev/loop-control")
    if os.geteuid() == 0 and control.exists():
        with control.open("rb") as device:
            for number in range(LOOP_DEVICES):
                with contextlib.suppress(FileExistsError):
                    fcntl.ioctl(device, _LOOP_CTL_ADD, number)
    devices = [control, *(Path(f"/dev/loop{number}") for number in range(LOOP_DEVICES))]
    return [f"--device={device}" for device in devices if device.exists()]


def _network(internet: bool) -> None:
    inspected = ["docker", "network", "inspect", NETWORK, "--format={{.Internal}}"]
    found = subprocess.run(inspected, capture_output=True, text=True, check=False)
    internal = [] if internet else ["--internal"]
    if found.returncode:
        _run("docker", "network", "create", f"--subnet={SUBNET}", *internal, NETWORK)
    elif found.stdout.strip() != str(not internet).lower():
        raise RuntimeError(
            f"the network {NETWORK} exists with the other internet setting: stop the hosts first"
        )


def _admit(name: str, key: Path) -> None:
    """Authorize our key on the host, record the host's key, and wait for SSH."""
    script = "install -d -m 700 -o {0} -g {0} ~{0}/.ssh && cat >~{0}/.ssh/authorized_keys"
    public = key.with_suffix(".pub").read_text()
    shell = ["docker", "exec", "--interactive", name, "sh", "-c", script.format(USER)]
    subprocess.run(shell, input=public, text=True, check=True)
    read_key = ["docker", "exec", name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"]
    host_key = _wait(f"{name}'s SSH key", 300, read_key).split()[:2]
    number = int(name.removeprefix("host"))
    known = STATE / "known_hosts"
    lines = known.read_text().splitlines() if known.exists() else []
    own = address(number)
    lines = [line for line in lines if not line.startswith(f"{own} ")]
    known.write_text("\n".join([*lines, f"{own} {' '.join(host_key)}"]) + "\n")
    options = [f"UserKnownHostsFile={known}", "BatchMode=yes", "ConnectTimeout=5"]
    command = ["ssh", "-i", str(key), *(f"-o{option}" for option in options)]
    _wait(f"SSH to {name}", 300, [*command, f"{USER}@{own}", "true"])


def names() -> list[str]:
    """Return the names of host1 to host9 that exist; higher numbers are other tests' own."""
    listed = _run("docker", "ps", "--all", "--filter=label=test-hosts", "--format={{.Names}}")
    return sorted(name for name in listed.split() if re.fullmatch(r"host[1-9]", name))


def remove(name: str) -> None:
    """Remove a host without cleaning up, as if its machine were lost."""
    _run("docker", "rm", "--force", "--volumes", name)
    with contextlib.suppress(RuntimeError):
        _run("docker", "volume", "rm", f"{name}-docker")


def reboot(name: str) -> None:
    """Restart a host; return once SSH works again."""
    _run("docker", "restart", "--time=60", name)
    _admit(name, _key())


def start_again(name: str) -> None:
    """Start a host that was killed; return once SSH works."""
    _run("docker", "start", name)
    _admit(name, _key())


@app.command()
def up(
    count: Annotated[int, typer.Argument(min=1, max=9, help="How many hosts")] = 3,
    internet: Annotated[bool, typer.Option(help="Whether they reach package mirrors")] = True,
) -> None:
    """Start test hosts; those that run already stay as they are."""
    build()
    present = names()
    for number in range(1, count + 1):
        if f"host{number}" not in present:
            print(start(number, internet=internet), address(number), flush=True)


@app.command()
def down() -> None:
    """Remove all test hosts with everything on them."""
    for name in names():
        remove(name)
    for kind, what in (("volume", SHARED_VOLUME), ("network", NETWORK)):
        with contextlib.suppress(RuntimeError):
            _run("docker", kind, "rm", what)


@contextlib.contextmanager
def hosts(count: int, *, internet: bool = True, options: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield `count` fresh hosts for a test, and remove them afterwards."""
    down()
    try:
        build()
        for number in range(1, count + 1):
            start(number, internet=internet, options=options)
        yield names()
    finally:
        down()


@contextlib.contextmanager
def proxy(folder: Path) -> Iterator[None]:
    """Run a proxy on this machine that hosts without internet reach; its log is in the folder."""
    config = folder / "tinyproxy.conf"
    config.write_text(
        f"Port {PROXY_PORT}\nListen {GATEWAY}\nAllow {SUBNET}\nTimeout 600\nMaxClients 200\n"
        "LogLevel Info\nUser nobody\nGroup nogroup\nDisableViaHeader Yes\n"
    )
    with (folder / "proxy.log").open("w") as log:
        running = subprocess.Popen(["tinyproxy", "-d", "-c", str(config)], stdout=log, stderr=log)
        try:
            yield
        finally:
            running.terminate()
            running.wait(60)


def proxied(folder: Path) -> list[str]:
    """Return the URLs, or hosts and ports, that the proxy of that folder was asked for."""
    log = (folder / "proxy.log").read_text()
    return re.findall(r"Request \(file descriptor \d+\): [A-Z]+ (\S+)", log)


if __name__ == "__main__":
    try:
        app()
    except (HostsUnavailableError, RuntimeError) as error:
        sys.exit(f"error: {error}")
