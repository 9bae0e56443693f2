"""Evaluates the probes of hosts. A check is data: host, name, ok, message, remedy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Check = dict[str, Any]
GIB = 1024**3

# Systems that the roles support: id -> versions.
SYSTEMS = {"debian": {"12"}, "ubuntu": {"22.04", "24.04"}}
MACHINES = {"x86_64", "amd64"}
OLDEST_DOCKER = (20, 10)
# The measured offset of a slow host's clock includes the time to transfer the probe.
CLOCK_TRANSFER_SECONDS = 10.0


def check(host: str, name: str, ok: bool, message: str, remedy: str = "") -> Check:
    """Return a check's result; a passed check has no remedy."""
    return {
        "host": host,
        "name": name,
        "ok": bool(ok),
        "message": message,
        "remedy": "" if ok else remedy,
    }


def _numbers(version: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: 20.10.24+dfsg1 is (20, 10, 24)."""
    numbers = []
    for part in (version or "").replace("+", ".").replace("-", ".").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def host_checks(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    """Evaluate a host before anything is installed on it.

    Args:
        probe: What host_probe returned.
        host: The host's name in the inventory.
        settings: host_requirements (group_vars/all/derived.yml), and ports (setting -> number of
            each port that must be free), may_become (whether the user may become root) and
            become_error (why not).
    """
    evaluate: Iterable[Callable[..., list[Check]]] = (
        _system,
        _privileges,
        _clock,
        _memory,
        _disks,
        _ports,
        _docker,
        _peers,
    )
    return [found for each in evaluate for found in each(probe, host, settings)]


def _system(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    del settings
    system = probe["system"]
    supported = system["version"] in SYSTEMS.get(system["id"], ())
    return [
        check(
            host,
            "operating system",
            supported,
            system["name"],
            "use Debian 12, Ubuntu 22.04 or Ubuntu 24.04",
        ),
        check(
            host,
            "systemd",
            system["systemd"],
            "runs" if system["systemd"] else "systemd does not run this host",
            "boot the host with systemd: master and agents run as its services",
        ),
        check(
            host,
            "architecture",
            probe["machine"] in MACHINES,
            probe["machine"],
            "use an x86-64 host: Determined's images support no other architecture",
        ),
    ]


def _privileges(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    del probe
    may = settings["may_become"]
    error = f"({settings['become_error']})" if settings.get("become_error") else ""
    return [
        check(
            host,
            "privileges",
            may,
            "may become root" if may else f"the user may not become root {error}".strip(),
            "let the user use sudo, and give its password with ARGS=--ask-become-pass or "
            "ansible_become_password",
        )
    ]


def _clock(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    offset = probe["clock_offset"]
    limit = float(settings["clock_offset_seconds"])
    # The probe's transfer time makes the host's clock appear to be ahead.
    ok = -limit <= offset <= limit + CLOCK_TRANSFER_SECONDS
    return [
        check(
            host,
            "clock",
            ok,
            f"{offset:+.0f} s from this machine's clock",
            "synchronise the clocks: apt install systemd-timesyncd; timedatectl set-ntp true",
        )
    ]


def _memory(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    has, needs = probe["memory"] / GIB, float(settings["memory_gb"])
    return [
        check(
            host,
            "memory",
            # A machine sold as 8 GB shows a little less.
            has >= 0.9 * needs,
            f"{has:.0f} GiB",
            f"use a host with {needs:g} GiB, or lower memory_gb",
        )
    ]


def _disks(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    # daemon.json knows better than the setting.
    docker_data = probe["docker"].get("data_root") or settings["docker_data"]
    wanted = [
        ("disk for images", docker_data, settings["image_disk_gb"], "image_disk_gb"),
        ("disk for data", settings["coco_store"], settings["data_disk_gb"], "data_disk_gb"),
    ]
    checks = []
    # If two folders are on one disk, their requirements add up.
    taken: dict[int, float] = defaultdict(float)
    for name, path, gigabytes, setting in wanted:
        disk = probe["disks"][path]
        if name == "disk for images":
            needs = 1.0 if probe["provisioned"] else float(gigabytes)
        else:
            # coco-sync, or something else, has copied the data set there.
            present = probe["disks"][settings["data_path"]]["exists"]
            needs = 0.0 if present else float(gigabytes)
        free = disk["free"] / GIB - taken[disk["device"]]
        taken[disk["device"]] += needs
        checks.append(
            check(
                host,
                name,
                free >= needs,
                f"{disk['free'] / GIB:.0f} GiB free for {path} (needs {needs:g} GiB)",
                f"free space in {disk['at']}, mount a larger disk at {path}, or lower {setting}",
            )
        )
    return checks


def _ports(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    # On a provisioned host the cluster's own services use them.
    used = set() if probe["provisioned"] else set(probe["ports"])
    return [
        check(
            host,
            f"port {port}",
            int(port) not in used,
            "in use" if int(port) in used else "free",
            f"stop the program that listens on it (ss -ltnp 'sport = :{port}'), or change {name}",
        )
        for name, port in settings["ports"].items()
    ]


def _docker(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    del settings
    docker = probe["docker"]
    if docker["kind"] is None:
        return [check(host, "Docker", True, "will be installed")]
    supported = docker["kind"] == "docker" and _numbers(docker["version"])[:2] >= OLDEST_DOCKER
    remedies = {
        "snap": "remove it (snap remove docker): a snap's confinement prevents mounting the data",
        "podman": "remove podman-docker: Determined's agent needs Docker itself",
    }
    return [
        check(
            host,
            "Docker",
            supported,
            f"{docker['kind']} {docker['version']}",
            remedies.get(docker["kind"], "upgrade it to 20.10 or newer, or remove it"),
        )
    ]


def _peers(probe: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    del settings
    checks = []
    for peer in probe["unreachable"]:
        where = f"{peer['address']}:{peer['port']}"
        remedy = (
            f"allow connections from {host} to {where}, or set cluster_address of {peer['name']}"
            if peer["resolved"]
            else f"make {peer['address']} resolve on {host} (DNS, /etc/hosts), or set the "
            f"cluster_address of {peer['name']} to an IP address"
        )
        message = f"cannot reach {peer['name']} at {where}: {peer['error']}"
        checks.append(check(host, "network", False, message, remedy))
    return checks or [check(host, "network", True, "reaches every host")]


def unreached(reasons: Mapping[str, str]) -> list[Check]:
    """Turn hosts that could not be probed into failed checks.

    Args:
        reasons: Host -> why it could not be probed; may be empty.
    """
    remedy = "check that `ssh` to it works from here without a prompt, and that it has python3"
    return [
        check(host, "SSH", False, (reason or "no answer").strip().splitlines()[0], remedy)
        for host, reason in reasons.items()
    ]


STORAGES = ("mount", "nfs", "s3")


def storage_checks(settings: Mapping[str, Any]) -> list[Check]:
    """Evaluate the settings of the checkpoint storage.

    Args:
        settings: storage (checkpoint_storage), path (checkpoint_path), s3 (checkpoint_s3) and keys:
            file of a key -> whether it exists.
    """
    storage, path, s3 = settings["storage"], str(settings["path"]), settings["s3"]
    problems = []
    if storage not in STORAGES:
        problems.append(
            (
                f"{storage!r} is not a kind of storage",
                f"set checkpoint_storage to one of {', '.join(STORAGES)}",
            )
        )
    elif storage != "s3" and not path.startswith("/"):
        problems.append(
            (f"{path!r} is not an absolute path", "set checkpoint_path to an absolute path")
        )
    elif storage == "s3":
        url = s3.get("endpoint_url") or ""
        if not s3.get("bucket"):
            problems.append(("no bucket is configured", "set checkpoint_s3: {bucket: ..., ...}"))
        if url and not url.startswith(("http://", "https://")):
            problems.append(
                (f"endpoint_url {url!r} is not a URL", "begin it with https:// or http://")
            )
        missing = [file for file, exists in settings["keys"].items() if not exists]
        if len(missing) == 1:
            problems.append(
                (
                    "one of the two keys is missing",
                    f"write it to {missing[0]}, or remove the other one",
                )
            )
    if not problems:
        return [check("all", "checkpoint storage", True, f"{storage}: settings are complete")]
    return [
        check("all", "checkpoint storage", False, message, remedy) for message, remedy in problems
    ]


def failed(checks: Iterable[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [found for found in checks if not found["ok"]]


def check_lines(checks: Iterable[Check]) -> list[str]:
    """Return a line for each check, and its remedy below if it failed."""
    lines = []
    for found in checks:
        mark = "ok  " if found["ok"] else "FAIL"
        lines.append(f"{mark} {found['host']}: {found['name']}: {found['message']}")
        if not found["ok"]:
            lines.append(f"     -> {found['remedy']}")
    return lines


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "host_checks": host_checks,
            "unreached": unreached,
            "storage_checks": storage_checks,
            "failed_checks": failed,
            "check_lines": check_lines,
        }
