"""Evaluates a running cluster: every check with its message and, if it failed, a remedy."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any


def _load(name: str) -> ModuleType:
    # Ansible loads each plugin on its own: a plain import does not find the file next to it.
    file = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"efficientdet_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks, services, daemon_settings = _load("checks"), _load("services"), _load("daemon_settings")
gpus, gpu_states, slots = _load("gpus"), _load("gpu_states"), _load("slots")
gpu_tests, networks = _load("gpu_tests"), _load("networks")

Check = dict[str, Any]

# Role of a host in a status -> its inventory group.
GROUPS = {"master": "master", "agent": "agents"}
# Reading less than this says nothing about a disk.
MINIMUM_BYTES = 100_000_000
REMEDY_IMAGE = "run make cluster-upgrade, which brings this machine's images to the hosts"
SEE_LOG = "find the cause with journalctl --unit {unit} on {host}, then systemctl restart {unit}"


def doctor_checks(
    hosts: Mapping[str, Mapping[str, Any]],
    status: Mapping[str, Any],
    measurements: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[Check]:
    """Evaluate everything that was collected and measured.

    Args:
        hosts: gather_state_hosts of the role gather_state.
        status: The same hosts as cluster_status presents them.
        measurements: doctor_measurements of the role doctor: host -> tls, certificates, daemon,
            read, storage, gpus, gpu_access, all_reduce.
        settings: doctor_settings of the role doctor.
    """
    found = [*_master(status, settings)]
    reached = {host: state for host, state in hosts.items() if state["probe"]}
    unreached = {host: state["error"] for host, state in hosts.items() if not state["probe"]}
    found += checks.unreached(unreached)
    rows = {row["host"]: row for row in status["hosts"]}
    masters: Mapping[str, Any] = next(
        (each["firewall"] for each in reached.values() if each["master"]), {}
    )
    for host, state in reached.items():
        measured = measurements[host]
        found += checks.host_checks(state["probe"], host, settings["host"])
        found += daemon_settings.daemon_checks(measured["daemon"], host)
        found += _units(host, rows[host], settings)
        found += _firewall(host, state["firewall"], masters, settings)
        found += _tls(host, measured)
        found += _certificates(host, measured, settings)
        found += _database(host, state)
        found += _image(host, rows[host], state, settings)
        if state["agent"]:
            found += gpus.gpu_checks(state["probe"]["gpus"], host, settings["gpus"][host])
            found += _agent(host, rows[host], status, settings)
            found += _slots(host, state["probe"]["gpus"], settings)
            found += _read_rate(host, measured["read"], settings)
            found += _storage(host, measured["storage"], settings)
            minimum = settings["gpus"][host]["driver_minimum"]
            found += gpu_tests.container_checks(measured["gpus"], host, minimum)
            unit = settings["services"]["agent"]["unit"]
            found += gpu_states.access_checks(measured["gpu_access"], host, unit)
            found += _all_reduce(host, measured["all_reduce"])
    found += networks.trial_interface_checks(
        {
            host: {
                "interfaces": state["probe"]["interfaces"],
                "wanted": settings["trial_interfaces"][host],
            }
            for host, state in reached.items()
            if state["agent"]
        }
    )
    found += _data(rows, reached, settings)
    return found


def _master(status: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    units = {name: service.get("unit") for name, service in settings["services"].items()}
    remedy = f"run make cluster-status, and journalctl --unit {units['master']} on its host"
    master = status["master"]
    answer = f"{master['url']} answers, version {master['version']}"
    silent = f"{master['url']}: {master['error']}"
    found = [
        checks.check(
            "master", "API", master["answers"], answer if master["answers"] else silent, remedy
        )
    ]
    if status["unknown_agents"]:
        names = ", ".join(status["unknown_agents"])
        stop = f"systemctl disable --now {units['agent']}"
        remedy = f"add them to the inventory, or stop them: {stop}"
        found.append(
            checks.check("master", "agents", False, f"not in the inventory: {names}", remedy)
        )
    return found


def _units(host: str, row: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    groups = [GROUPS[role] for role in row["roles"]]
    expected = services.expected_units(settings["services"], groups)
    states = {unit: row["units"].get(unit, "missing") for unit in expected}
    return [
        checks.check(
            host,
            unit.removesuffix(".service"),
            state == "active",
            state,
            "run make cluster-up" if state == "missing" else SEE_LOG.format(unit=unit, host=host),
        )
        for unit, state in states.items()
    ]


def _firewall(
    host: str, own: Mapping[str, Any], masters: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Check]:
    """Evaluate the rules in force, whatever the state of the unit that loads them.

    Args:
        host: The host.
        own: What `firewall.py state` printed on it.
        masters: The same of the master's host.
        settings: doctor_settings.
    """
    service = settings["services"]["firewall"]
    if not service["enabled"]:
        return []
    rules = own["rules"]
    missing = sorted(set(masters.get("members", ())) - set(own.get("members", ())))
    extra = sorted(set(own.get("members", ())) - set(masters.get("members", ())))
    differences = [f"lacks {', '.join(missing)}"] if missing else []
    differences += [f"admits {', '.join(extra)}"] if extra else []
    found = [
        checks.check(
            host,
            "firewall rules",
            rules == "in force",
            rules,
            f"run make cluster-up; the cause is in journalctl --unit {service['unit']} on {host}",
        ),
        checks.check(
            host,
            "firewall members",
            not differences,
            f"{'; '.join(differences)}, unlike the master's host"
            if differences
            else f"{len(own.get('members', ()))} addresses",
            "run make cluster-up without LIMIT=",
        ),
    ]
    for version, reached in own.get("stranger", {}).items():
        found.append(
            checks.check(
                host,
                f"closed to strangers ({version})",
                reached["port"] == "dropped",
                f"a new connection from no member is {reached['port']}, to SSH {reached['ssh']}",
                "run make cluster-up, and remove trial_ports from firewall_open_ports",
            )
        )
    return found


def _tls(host: str, measured: Mapping[str, Any]) -> list[Check]:
    answer = measured["tls"]
    trusted = answer.get("status") == 200
    return [
        checks.check(
            host,
            "TLS to the master",
            trusted,
            "trusted" if trusted else str(answer.get("msg", "no answer")),
            "run make cluster-up, which renews certificates; if refused, check client_networks",
        )
    ]


def _certificates(
    host: str, measured: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Check]:
    """Report how long each certificate of the host is valid, and those that end soon."""
    found = []
    for result in measured["certificates"]:
        certificate = result["item"]
        remedy = "run make cluster-certificates, which renews it while trials go on"
        if certificate["file"] == "ca":
            remedy = (
                f"when no trial runs, delete {settings['secrets']}/ca.key and run "
                "make cluster-certificates, which makes a new one"
            )
        elif certificate["file"] == "agents-ca":
            remedy = "run make cluster-certificates NEW_AUTHORITY=yes"
        valid = bool((result.get("valid_at") or {}).get("soon"))
        end = _remaining(result["not_after"]) if "not_after" in result else "missing or unreadable"
        found.append(checks.check(host, certificate["name"], valid, end, remedy))
    return found


def _remaining(end: str) -> str:
    """Describe the end of a certificate, given as YYYYMMDDhhmmssZ."""
    ends = datetime.strptime(end, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    days = (ends - datetime.now(UTC)).days
    return (
        f"valid until {ends:%Y-%m-%d}, {days} more days" if days >= 0 else f"ended {ends:%Y-%m-%d}"
    )


def _database(host: str, state: Mapping[str, Any]) -> list[Check]:
    if state["master"]:
        return []
    exposed = state["probe"]["exposed"]
    return [
        checks.check(
            host,
            "database closed",
            not exposed,
            f"{host} reaches PostgreSQL" if exposed else "not reachable from here",
            "run make cluster-up, which binds PostgreSQL to its host's loopback interface",
        )
    ]


def _image(
    host: str, row: Mapping[str, Any], state: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Check]:
    """Compare each image of the host with this machine's, if that was possible."""
    states = settings["images"].get("states", {}).get(host)
    if states is None:
        present = bool(state["images"])
        message = row["image"] or "missing"
        return [checks.check(host, "task image", present, message, REMEDY_IMAGE)]
    return [
        checks.check(
            host,
            "task image" if image == settings["task_image"] else f"image {image}",
            found == "ok",
            "as on this machine" if found == "ok" else f"{image} is {found}",
            REMEDY_IMAGE,
        )
        for image, found in states.items()
    ]


def _agent(
    host: str, row: Mapping[str, Any], status: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Check]:
    found = [
        checks.check(
            host,
            "agent",
            row["connected"] and row["slots"] > 0,
            f"{row['slots']} slot(s)" if row["connected"] else "unknown to the master",
            SEE_LOG.format(unit=settings["services"]["agent"]["unit"], host=host),
        )
    ]
    if row["connected"]:
        found.append(
            checks.check(
                host,
                "enabled",
                row["enabled"],
                "takes trials" if row["enabled"] else "drained: takes no trials",
                f"make cluster-undrain HOST={host}",
            )
        )
        version = status["master"]["version"]
        found.append(
            checks.check(
                host,
                "agent's version",
                row["agent_version"] == version,
                f"{row['agent_version']}, the master's is {version}",
                "run make cluster-upgrade",
            )
        )
    return found


def _slots(host: str, present: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    """Compare an agent's slots with the host's GPUs, if these answer."""
    used = gpus.used_gpus(present, settings["gpus"][host])
    if present["state"] in ("failed", "slow"):
        return []  # The checks of the GPUs report it.
    divided = any(device["mig"] for device in present["devices"])
    expected = {host: slots.expected_slots(len(used), settings["cpu_slots"][host], divided)}
    unit = settings["services"]["agent"]["unit"]
    problems = slots.slot_problems(settings["agents"], expected, unit)
    return [
        checks.check(host, "slots", False, has, cause)
        for has, _, cause in (line.partition(": ") for line in problems)
    ]


def _read_rate(host: str, read: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    if not read.get("bytes"):
        return []  # The check of the version reports a missing data set.
    rate = read["bytes"] / max(read["seconds"], 1e-9) / 1e6
    minimum = float(settings["read_mb_per_s"]) if read["bytes"] >= MINIMUM_BYTES else 0.0
    return [
        checks.check(
            host,
            "reading the data set",
            rate >= minimum,
            f"{rate:.0f} MB/s uncached, over {read['bytes'] / 1e6:.0f} MB",
            f"put {settings['data_path']} on a faster disk ({minimum:.0f} MB/s or more)",
        )
    ]


def _storage(host: str, storage: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    shared = storage.get("rc") == 0
    location = settings["storage_location"]
    reason = str(storage.get("reason") or "not tested")
    return [
        checks.check(
            host,
            "checkpoint storage",
            shared,
            f"{location} is shared and writable" if shared else f"{location}: {reason}",
            settings["storage_remedy"],
        )
    ]


def _all_reduce(host: str, job: Mapping[str, Any]) -> list[Check]:
    if not job or job.get("skipped"):
        return []
    try:
        result = json.loads(str(job.get("stdout", "")).strip().splitlines()[-1])
    except (ValueError, IndexError):
        lines = str(job.get("stderr") or job.get("msg") or "").strip().splitlines()
        result = {"correct": False, "error": lines[-1] if lines else "no result"}
    correct = result["correct"]
    message = (
        f"{result['gigabytes_per_second']} GB/s over {result['ranks']} hosts ({result['backend']})"
        if correct
        else str(result.get("error", "the result of the sum is wrong"))
    )
    remedy = (
        "open trial_ports and all ports above 1023 between the hosts, or set trial_interface to "
        "the network interface that connects them"
    )
    return [checks.check(host, "all-reduce", correct, message, remedy)]


def _data(
    rows: Mapping[str, Mapping[str, Any]],
    reached: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[Check]:
    versions = {host: rows[host]["data"]["version"] for host in reached if reached[host]["agent"]}
    usual = max(filter(None, versions.values()), key=list(versions.values()).count, default=None)
    found = []
    for host, version in versions.items():
        short = f"version {str(version)[:12]}" if version else "missing"
        message = f"{settings['data_path']}: {short}"
        if version and version != usual:
            message += f", most hosts have {str(usual)[:12]}"
        ok = version is not None and version == usual
        found.append(checks.check(host, "data set", ok, message, "run make coco-sync"))
    return found


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"doctor_checks": doctor_checks}
