"""Evaluates the GPUs of hosts: whether trials can use them, and what to do if not."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
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


checks, gpu_states = _load("checks"), _load("gpu_states")

Check = dict[str, Any]

# PCI device numbers rise with the generations. The first ones of Turing, which is the oldest that
# torch supports, and of Blackwell, whose driver has open kernel modules only.
TURING, BLACKWELL = 0x1E00, 0x2900

REBOOT = "make cluster-drain HOST={host}, reboot it, then make cluster-undrain HOST={host}"
# What nvidia-smi says -> what to do about it.
CAUSES = {
    "gave no answer": "keep the driver loaded (systemctl enable --now nvidia-persistenced); if it "
    "is slow even then, a GPU hangs: `dmesg | grep -i xid` names it",
    "version mismatch": "the driver was upgraded, and the previous one still runs: " + REBOOT,
    "couldn't communicate": "the driver's kernel module is not loaded: `dkms status` and "
    "`dmesg | grep -i nvidia` tell why (a new kernel without a module for it, or Secure Boot, "
    "which refuses unsigned modules)",
    "is lost": "the GPU has fallen off the bus (`dmesg | grep -i xid`): " + REBOOT + "; if it is "
    "lost again, check its power, temperature and slot",
    "No devices were found": "the driver supports none of them: `dmesg | grep NVRM` tells why "
    "(GPUs since Blackwell need the driver's open kernel modules)",
}
CAUSES["Unable to determine the device handle"] = CAUSES["is lost"]


def gpu_checks(gpus: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    """Evaluate whether trials can use the GPUs of a host.

    Args:
        gpus: `gpus` of what host_probe returned.
        host: The host's name in the inventory.
        settings: gpu_settings (group_vars/all/derived.yml).
    """
    if settings["gpus"] == "none":
        return []
    if gpus["state"] == "absent":
        ok = settings["gpus"] != "required"
        return [checks.check(host, "GPUs", ok, "none", "install a GPU, or set gpus: auto")]
    found = _too_old(gpus, host) + _driver(gpus, host, settings)
    if gpus["state"] == "working":
        found += _visible(gpus, host, settings) + _capabilities(gpus, host, settings)
        found += _alike(gpus, host, settings)
        found += gpu_states.state_checks(gpus, host)
    return found


def driver_action(gpus: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return `install` if the host is to get the driver of nvidia_driver_package, else `leave`.

    A driver that is there and fails is left alone: its cause is another one, such as an upgrade
    without a reboot, and installing it would not change that.
    """
    wanted = settings["gpus"] != "none" and settings["driver_package"] and gpus["on_bus"] > 0
    if gpus["state"] == "working":
        lacking = not _new_enough(gpus, settings)
    else:
        lacking = "not installed" in gpus["error"] and gpus["loaded_driver"] is None
    return "install" if wanted and lacking else "leave"


def used_gpus(gpus: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs of the GPUs that become slots."""
    if settings["gpus"] == "none":
        return []
    return [device["uuid"] for device in gpus["devices"] if _is_used(device, settings)]


def pool_checks(agents: Mapping[str, Mapping[str, Any]], different: bool) -> list[Check]:
    """Evaluate what no single host can show: whether the agents of each pool are alike.

    Determined counts slots and knows no kinds of them: in a mixed pool, a trial for GPUs may start
    on processors.

    Args:
        agents: Agent -> `pool`, its resource pool, and `gpus`, the number of its GPU slots.
        different: Whether the numbers of GPUs may differ.
    """
    found = []
    for pool in sorted({agent["pool"] for agent in agents.values()}):
        counts = {host: agent["gpus"] for host, agent in agents.items() if agent["pool"] == pool}
        listed = ", ".join(f"{host} {count}" for host, count in counts.items())
        if 0 in counts.values() and any(counts.values()):
            bare = [host for host, count in counts.items() if not count]
            remedy = (
                f"give {', '.join(bare)} a pool of their own with resource_pool: processors in "
                "the inventory, or set gpus: none for all"
            )
            message = f"GPUs in the pool {pool}: {listed}"
            found.append(checks.check("all", "one kind of slots", False, message, remedy))
        elif len(set(counts.values())) > 1 and not different:
            remedy = (
                "a trial on several hosts uses the same number of slots on each: remove the hosts "
                "that differ, give them a resource_pool of their own, or set "
                "different_gpu_counts: true"
            )
            message = f"GPUs in the pool {pool}: {listed}"
            found.append(checks.check("all", "equal GPU counts", False, message, remedy))
    return found


def _is_used(device: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    wanted = settings["names"]
    return not wanted or any(name.lower() in device["name"].lower() for name in wanted)


def _new_enough(gpus: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    major = re.match(r"\d+", gpus["driver"] or "")
    return major is not None and int(major[0]) >= int(settings["driver_minimum"])


def _too_old(gpus: Mapping[str, Any], host: str) -> list[Check]:
    """Name GPUs older than any that torch supports, if no driver tells their capability."""
    old = [kind for kind in gpus["kinds"] if int(kind or "0", 16) < TURING]
    if not old or gpus["state"] == "working":
        return []
    listed = ", ".join(f"10de:{kind.removeprefix('0x')}" for kind in sorted(set(old)))
    message = f"{listed} is older than Turing (`lspci -d 10de:` names it)"
    return [checks.check(host, "GPU model", False, message, "use a newer GPU, or set gpus: none")]


def _driver(gpus: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    name = "NVIDIA driver"
    if driver_action(gpus, settings) == "install":
        message = gpus["driver"] or "none"
        problem = _cannot_install(gpus, settings)
        if problem:
            return [checks.check(host, name, False, message, problem)]
        return [checks.check(host, name, True, f"{message}: {settings['driver_package']} follows")]
    minimum = settings["driver_minimum"]
    install = (
        f"install NVIDIA's driver {minimum} or newer and reboot, or set nvidia_driver_package to "
        "let the playbook do it"
    )
    if gpus["state"] == "working":
        ok = _new_enough(gpus, settings)
        return [checks.check(host, name, ok, str(gpus["driver"]), install)]
    if "not installed" in gpus["error"] and gpus["loaded_driver"] is None:
        message = f"none, with {gpus['on_bus']} GPU(s) on the bus"
        return [checks.check(host, name, False, message, install)]
    remedy = next(
        (remedy for words, remedy in CAUSES.items() if words in gpus["error"]),
        "run nvidia-smi there and `dmesg | grep -i -e nvrm -e xid`",
    )
    loaded = f" (loaded: {gpus['loaded_driver']})" if gpus["loaded_driver"] else ""
    message = f"{gpus['error']}{loaded}"
    return [checks.check(host, name, False, message, remedy.format(host=host))]


def _cannot_install(gpus: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Return why the driver's package cannot be installed and what to do, or None if it can."""
    package, candidate = settings["driver_package"], settings["driver_candidate"]
    minimum = int(settings["driver_minimum"])
    by_hand = f"install NVIDIA's driver {minimum} or newer there by hand and reboot"
    if settings["local"]:
        return f"{by_hand}: a playbook cannot reboot the machine that it runs on"
    if any(int(kind or "0", 16) >= BLACKWELL for kind in gpus["kinds"]) and "open" not in package:
        return (
            "set nvidia_driver_package to one with open kernel modules, such as "
            f"nvidia-driver-{minimum}-server-open: its GPUs need them"
        )
    if candidate is None:
        if settings["offline"]:
            return f"{by_hand}: the offline bundle has no drivers"
        return None  # Its package lists may be missing still.
    major = re.match(r"(?:\d+:)?(\d+)\.", candidate)
    if major and int(major[1]) < minimum:
        return (
            f"{package} is version {candidate} there: {by_hand}, or add NVIDIA's own package "
            "source (cuda-keyring) and name its package"
        )
    return None


def _visible(gpus: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    """Evaluate whether the driver uses all GPUs on the bus, but for cards that need not train."""
    visible, on_bus = gpus["visible"], gpus["on_bus"]
    # A driver of today leaves a display card of yesterday alone.
    old = sum(int(kind or "0", 16) < TURING for kind in gpus["kinds"])
    expected = on_bus - old if settings["names"] else on_bus
    missing = f"; {gpus['error']}" if gpus["error"] else ""
    models = ", ".join(sorted(set(gpus["names"])))
    lost = next((remedy for words, remedy in CAUSES.items() if words in gpus["error"]), None)
    if lost is not None:
        remedy = lost.format(host=host)
    elif old:
        remedy = (
            f'one is older than Turing: name those that train, gpu_names: ["{gpus["names"][0]}"]'
        )
    else:
        remedy = "run `dmesg | grep NVRM` to see why the driver does not use all of them"
    message = f"{visible} of {max(on_bus, visible)} visible: {models}{missing}"
    return [checks.check(host, "GPUs", visible >= expected, message, remedy)]


def _capabilities(gpus: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    """Evaluate whether torch has machine code for the GPUs that become slots."""
    unsupported = {
        f"{device['name']} ({device['capability']})"
        for device in gpus["devices"]
        if _is_used(device, settings)
        and device["capability"]
        and not _supported(device["capability"], settings["architectures"])
    }
    listed = ", ".join(sorted(unsupported))
    return [
        checks.check(
            host,
            "compute capability",
            not unsupported,
            f"not supported: {listed}" if unsupported else "supported",
            f"torch is built for {', '.join(map(str, settings['architectures']))}: use other GPUs, "
            "leave these out with gpu_names, or set gpus: none",
        )
    ]


def _supported(capability: str, architectures: list[Any]) -> bool:
    """Return whether a GPU runs code of one of the architectures: same major, no later minor."""
    major, minor = capability.split(".")
    built = [str(architecture).split(".") for architecture in architectures]
    return any(major == own and int(minor) >= int(lowest) for own, lowest in built)


def _alike(gpus: Mapping[str, Any], host: str, settings: Mapping[str, Any]) -> list[Check]:
    """Refuse GPUs of several kinds as slots: every step waits for the slowest."""
    used = [device for device in gpus["devices"] if _is_used(device, settings)]
    if not used:
        named = ", ".join(settings["names"])
        return [
            checks.check(
                host,
                "GPU model",
                False,
                f"no GPU is called {named}: {', '.join(sorted(set(gpus['names'])))}",
                "change gpu_names, or set gpus: none",
            )
        ]
    kinds = sorted({device["name"] for device in used})
    return [
        checks.check(
            host,
            "GPU model",
            len(kinds) == 1 or settings["different_models"],
            ", ".join(kinds),
            "every step would wait for the slowest: name those that train, such as gpu_names: "
            f'["{max(used, key=lambda each: each["memory_mib"] or 0)["name"]}"], or set '
            "different_gpu_models: true",
        )
    ]


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "gpu_checks": gpu_checks,
            "driver_action": driver_action,
            "used_gpus": used_gpus,
            "pool_checks": pool_checks,
        }
