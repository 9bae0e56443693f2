"""Simulated hosts on one machine, each with its own network, mounts and optionally an SSH server.

A host is a process in its own mount and network namespaces. All hosts are connected to one bridge
by links that tc limits in both directions. Closing the lab leaves nothing behind, as namespaces end
with their processes. Needs root, iproute2, util-linux, and openssh-server for SSH.
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

STORE = "/srv/store"
DATA = "/srv/data"
_NETWORK = "10.99.0"
_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel ERROR
"""


def why_unavailable() -> str | None:
    """Return why a lab cannot run here, or None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    test = ["unshare", "--mount", "--net", "sh", "-c", "mount -t tmpfs none /srv && ip link"]
    done = subprocess.run(test, capture_output=True, text=True, check=False)
    return f"namespaces cannot be created: {done.stderr.strip()}" if done.returncode else None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")


class LabHost:
    """One host of a lab."""

    def __init__(self, lab: "Lab", number: int) -> None:
        """Create the description of a host; `Lab.start` starts it."""
        self.name = f"host{number}"
        self.address = f"{_NETWORK}.{number}"
        self.folder = lab.folder / self.name
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def enter(self) -> tuple[str, ...]:
        """The command prefix that runs a command on the host."""
        assert self.process is not None
        return ("nsenter", "--target", str(self.process.pid), "--mount", "--net")

    def run(self, script: str) -> str:
        """Run a shell script on the host and return its stdout."""
        done = subprocess.run(
            [*self.enter, "sh", "-ec", script], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {script}: {done.stderr.strip()}")
        return done.stdout.strip()

    def kill(self, pattern: str) -> int:
        """Kill this host's processes whose command line contains a string; return how many."""
        assert self.process is not None
        killed = 0
        try:
            own = Path(f"/proc/{self.process.pid}/ns/net").readlink()
        except OSError:  # The host's main process has ended, and all others with it.
            return 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "ns" / "net").readlink() != own:
                    continue
                if pattern in (process / "cmdline").read_bytes().decode(errors="replace"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
            except OSError:  # It has ended.
                continue
        return killed


class Lab:
    """A bridge with hosts connected to it."""

    def __init__(
        self,
        folder: Path,
        hosts: int,
        *,
        rate: str | None = None,
        ssh: bool = False,
        small_disks: dict[int, str] | None = None,
    ) -> None:
        """Create a lab; entering it starts the hosts.

        Args:
            folder: Folder for the hosts' stores and keys.
            hosts: Number of hosts.
            rate: Speed of each link in each direction, in tc's notation; None for no limit.
            ssh: Whether to run an SSH server on each host.
            small_disks: Size of a tmpfs for a host's store, by the host's number.
        """
        self.folder = folder
        self.hosts = [LabHost(self, number) for number in range(1, hosts + 1)]
        self.key = folder / "id"
        self._rate = rate
        self._ssh = ssh
        self._small_disks = small_disks or {}
        self._bridge: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Lab":
        """Start the bridge and all hosts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._ssh:
            for name in ("host_key", "id"):
                (self.folder / name).unlink(missing_ok=True)
                _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
            (self.folder / "sshd_config").write_text(_SSHD.format(folder=self.folder))
        try:
            self._bridge = self._start("sleep", "infinity")
            self._on_bridge("ip", "link", "add", "br0", "type", "bridge")
            self._on_bridge("ip", "link", "set", "br0", "up")
            for host in self.hosts:
                self.start(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything."""
        self.close()

    def close(self) -> None:
        """Stop the hosts and the bridge."""
        for host in self.hosts:
            self.stop(host)
        if self._bridge is not None:
            self._bridge.kill()
            self._bridge.wait()

    def start(self, host: LabHost) -> None:
        """Start a host; its store persists over restarts, its mounts do not."""
        number = int(host.address.rpartition(".")[2])
        (host.folder / "store").mkdir(parents=True, exist_ok=True)
        disk = self._small_disks.get(number)
        store = (
            f"mount --bind {host.folder}/store {STORE}"
            if disk is None
            else f"mount -t tmpfs -o size={disk} none {STORE}"
        )
        server = (
            f"mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e -f {self.folder}/sshd_config"
            if self._ssh
            else "exec sleep infinity"
        )
        host.process = self._start(
            "sh",
            "-ec",
            f"mount -t tmpfs none /srv; mkdir {STORE} {DATA}; {store}; touch /srv/ready; "
            f"mount -t tmpfs none /run; {server}",
            mounts=True,
        )
        self._connect(str(host.process.pid), "eth0", f"port{number}")
        enter = ("nsenter", "--target", str(host.process.pid), "--net")
        _run(*enter, "ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        _run(*enter, "ip", "link", "set", "lo", "up")
        self._wait_for(host)

    def stop(self, host: LabHost) -> None:
        """Stop a host by killing all of its processes."""
        if host.process is None:
            return
        host.kill("")
        host.process.wait()
        host.process = None

    def _wait_for(self, host: LabHost) -> None:
        deadline = time.monotonic() + 20
        probe = "test -e /srv/ready"
        if self._ssh:
            probe += " && ss -tln | grep -q ':22 '"
        while time.monotonic() < deadline:
            try:
                host.run(probe)
                return
            except RuntimeError:
                time.sleep(0.05)
        raise RuntimeError(f"{host.name} did not start within 20 s")

    def _start(self, *command: str, mounts: bool = False) -> subprocess.Popen[bytes]:
        space = ["unshare", "--net", *(["--mount", "--propagation", "private"] if mounts else [])]
        before = Path("/proc/self/ns/net").readlink()
        process = subprocess.Popen([*space, *command], stdin=subprocess.DEVNULL)
        while Path(f"/proc/{process.pid}/ns/net").readlink() == before:
            time.sleep(0.005)
        return process

    def _on_bridge(self, *command: str) -> None:
        assert self._bridge is not None
        _run("nsenter", "--target", str(self._bridge.pid), "--net", *command)

    def _connect(self, process: str, name: str, port: str) -> None:
        """Connect a process's network to the bridge by a link of limited speed."""
        assert self._bridge is not None
        self._on_bridge(
            *("ip", "link", "add", port, "type", "veth"),
            *("peer", "name", name, "netns", process),
        )
        self._on_bridge("ip", "link", "set", port, "master", "br0")
        self._on_bridge("ip", "link", "set", port, "up")
        inside = ("nsenter", "--target", process, "--net")
        # The same after a restart, since other hosts have it in their ARP caches.
        mac = f"02:00:00:00:00:{int(port.removeprefix('port')):02x}"
        _run(*inside, "ip", "link", "set", name, "address", mac, "up")
        if self._rate is None:
            return
        shape = ("root", "tbf", "rate", self._rate, "burst", "64kb", "latency", "50ms")
        self._on_bridge("tc", "qdisc", "add", "dev", port, *shape)
        _run(*inside, "tc", "qdisc", "add", "dev", name, *shape)
