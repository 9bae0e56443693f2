"""Judges a running cluster: every check with its message and, where it failed, a remedy."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Ansible loads each file of filters by itself, so that a plain import does not find its neighbour.
_spec = importlib.util.spec_from_file_location(
    "efficientdet_checks", Path(__file__).with_name("checks.py")
)
assert _spec is not None
assert _spec.loader is not None
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)

Check = dict[str, Any]

MASTER_UNITS = ("determined-postgres.service", "determined-master.service")
JUDGED_BYTES = 100_000_000
SEE_LOG = "see why: journalctl --unit {unit} on {host}; then systemctl restart {unit}"


def doctor_checks(
    hosts: Mapping[str, Mapping[str, Any]],
    status: Mapping[str, Any],
    trials: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[Check]:
    """Judge everything that was looked at and tried.

    Args:
        hosts: Host -> what the role state found there.
        status: What cluster_status made of it.
        trials: Host -> the results of what the role doctor tried: tls, certificate, read, storage,
            all_reduce.
        settings: doctor_settings of the role.
    """
    found = [*_master(status)]
    reached = {host: seen for host, seen in hosts.items() if seen["probe"]}
    gone = {host: seen["error"] for host, seen in hosts.items() if not seen["probe"]}
    found += checks.unreached(gone)
    rows = {row["host"]: row for row in status["hosts"]}
    for host, seen in reached.items():
        found += checks.host_checks(seen["probe"], host, settings["host"])
        found += _units(host, rows[host], settings)
        found += _tls(host, trials[host])
        found += _database(host, seen)
        found += _image(host, rows[host], seen, settings)
        if seen["agent"]:
            found += _agent(host, rows[host], status)
            found += _read_rate(host, trials[host]["read"], settings)
            found += _storage(host, trials[host]["storage"], settings)
            found += _all_reduce(host, trials[host]["all_reduce"])
    found += _data(rows, reached, settings)
    return found


def _master(status: Mapping[str, Any]) -> list[Check]:
    master = status["master"]
    answer = f"{master['url']} answers, version {master['version']}"
    silent = f"{master['url']}: {master['error']}"
    remedy = "see make cluster-status, and journalctl --unit determined-master on its host"
    made = [
        checks.check(
            "master", "API", master["answers"], answer if master["answers"] else silent, remedy
        )
    ]
    if status["unknown_agents"]:
        names = ", ".join(status["unknown_agents"])
        remedy = "add them to the inventory, or stop them: systemctl disable --now determined-agent"
        made.append(checks.check("master", "agents", False, f"not in inventory: {names}", remedy))
    return made


def _units(host: str, row: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    wanted = [*MASTER_UNITS] if "master" in row["roles"] else []
    if "master" in row["roles"] and not settings["local"]:
        wanted.append("determined-registry.service")
    if "agent" in row["roles"]:
        wanted.append("determined-agent.service")
    if settings["firewall"]:
        wanted.append("determined-firewall.service")
    states = {unit: row["units"].get(unit, "missing") for unit in wanted}
    return [
        checks.check(
            host,
            unit.removesuffix(".service"),
            state == "active",
            state,
            "make cluster-up" if state == "missing" else SEE_LOG.format(unit=unit, host=host),
        )
        for unit, state in states.items()
    ]


def _tls(host: str, trial: Mapping[str, Any]) -> list[Check]:
    answer, certificate = trial["tls"], trial["certificate"]
    trusted = answer.get("status") == 200
    lasting = bool((certificate.get("valid_at") or {}).get("soon"))
    return [
        checks.check(
            host,
            "TLS to the master",
            trusted,
            "trusted" if trusted else str(answer.get("msg", "no answer")),
            "run make cluster-up: it renews certificates; see client_networks if it is refused",
        ),
        checks.check(
            host,
            "certificate",
            lasting,
            f"valid until {certificate.get('not_after', 'unknown')}",
            "run make cluster-up: it renews certificates that end soon",
        ),
    ]


def _database(host: str, seen: Mapping[str, Any]) -> list[Check]:
    if seen["master"]:
        return []
    exposed = seen["probe"]["exposed"]
    return [
        checks.check(
            host,
            "database closed",
            not exposed,
            f"{host} reaches PostgreSQL" if exposed else "not reachable from here",
            "run make cluster-up: PostgreSQL is bound to its host's loopback interface",
        )
    ]


def _image(
    host: str, row: Mapping[str, Any], seen: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Check]:
    wanted = settings["cluster_image"]
    images = seen["images"]
    same = bool(images) and wanted in ("", images[0]["Id"])
    message = row["image"] or "missing"
    if images and not same:
        message = f"{message} is not this machine's"
    return [checks.check(host, "task image", same, message, "run make cluster-upgrade")]


def _agent(host: str, row: Mapping[str, Any], status: Mapping[str, Any]) -> list[Check]:
    made = [
        checks.check(
            host,
            "agent",
            row["connected"] and row["slots"] > 0,
            f"{row['slots']} slot(s)" if row["connected"] else "unknown to the master",
            SEE_LOG.format(unit="determined-agent", host=host),
        )
    ]
    if row["connected"]:
        made.append(
            checks.check(
                host,
                "enabled",
                row["enabled"],
                "takes trials" if row["enabled"] else "drained: takes no trials",
                f"make cluster-undrain HOST={host}",
            )
        )
        version = status["master"]["version"]
        made.append(
            checks.check(
                host,
                "agent's version",
                row["agent_version"] == version,
                f"{row['agent_version']}, the master's is {version}",
                "run make cluster-upgrade",
            )
        )
    return made


def _read_rate(host: str, read: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    if not read.get("bytes"):
        return []  # That the data set is missing is said once, by its version.
    rate = read["bytes"] / max(read["seconds"], 1e-9) / 1e6
    # A data set of a few megabytes says nothing of a disk, and needs nothing of it.
    wanted = float(settings["read_mb_per_s"]) if read["bytes"] >= JUDGED_BYTES else 0.0
    return [
        checks.check(
            host,
            "reading the data set",
            rate >= wanted,
            f"{rate:.0f} MB/s uncached, of {read['bytes'] / 1e6:.0f} MB",
            f"put {settings['data_path']} on a faster disk ({wanted:.0f} MB/s or more)",
        )
    ]


def _storage(host: str, storage: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Check]:
    shared = storage.get("rc") == 0
    place = settings["storage_place"]
    reason = str(storage.get("reason") or "not tried")
    return [
        checks.check(
            host,
            "checkpoint storage",
            shared,
            f"{place} is shared and writable" if shared else f"{place}: {reason}",
            settings["storage_remedy"],
        )
    ]


def _all_reduce(host: str, ended: Mapping[str, Any]) -> list[Check]:
    if not ended or ended.get("skipped"):
        return []
    try:
        result = json.loads(str(ended.get("stdout", "")).strip().splitlines()[-1])
    except (ValueError, IndexError):
        lines = str(ended.get("stderr") or ended.get("msg") or "").strip().splitlines()
        result = {"right": False, "error": lines[-1] if lines else "no result"}
    right = result["right"]
    message = (
        f"{result['gigabytes_per_second']} GB/s over {result['ranks']} hosts ({result['backend']})"
        if right
        else str(result.get("error", "the sum is wrong"))
    )
    remedy = "open trial_ports and all ports above 1023 among the hosts; see trial_interface"
    return [checks.check(host, "all-reduce", right, message, remedy)]


def _data(
    rows: Mapping[str, Mapping[str, Any]],
    reached: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[Check]:
    versions = {host: rows[host]["data"]["version"] for host in reached if reached[host]["agent"]}
    newest = max(filter(None, versions.values()), key=list(versions.values()).count, default=None)
    made = []
    for host, version in versions.items():
        short = f"version {str(version)[:12]}" if version else "missing"
        message = f"{settings['data_path']}: {short}"
        if version and version != newest:
            message += f", most hosts have {str(newest)[:12]}"
        ok = version is not None and version == newest
        made.append(checks.check(host, "data set", ok, message, "run make coco-sync"))
    return made


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by their names in templates."""
        return {"doctor_checks": doctor_checks}
