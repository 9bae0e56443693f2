"""Selects from cluster_services (group_vars/all/services.yml) what a host or a check needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Service = Mapping[str, Any]


def in_groups(services: Mapping[str, Service], groups: Iterable[str]) -> list[Service]:
    """Return the services that belong on a host of these inventory groups, enabled or not."""
    wanted = {"all", *groups}
    return [service for service in services.values() if service["group"] in wanted]


def expected_units(services: Mapping[str, Service], groups: Iterable[str]) -> list[str]:
    """Return the systemd units that must be active on a host of these inventory groups."""
    return [
        f"{service['unit']}.service"
        for service in in_groups(services, groups)
        if service["enabled"] and "unit" in service
    ]


def removable_units(services: Mapping[str, Service]) -> list[str]:
    """Return, in order, the units to stop on a host that leaves the cluster.

    The timers of health checks come first, so that none restarts a service that was stopped.
    """
    with_unit = [service for service in services.values() if "unit" in service]
    timers = [f"{service['unit']}-health.timer" for service in with_unit if "image" in service]
    return timers + [f"{service['unit']}.service" for service in with_unit]


def preflight_ports(services: Mapping[str, Service], groups: Iterable[str]) -> dict[str, Any]:
    """Return setting -> port of the units that a host of these inventory groups will run."""
    return {
        service["port_setting"]: service["port"]
        for service in in_groups(services, groups)
        if "unit" in service and "port" in service
    }


def service_images(services: Mapping[str, Service], groups: Iterable[str]) -> list[str]:
    """Return the images of the services on a host of these inventory groups."""
    return [service["image"] for service in in_groups(services, groups) if "image" in service]


class FilterModule:
    """The entry point that Ansible requires."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "services_in_groups": in_groups,
            "removable_units": removable_units,
            "preflight_ports": preflight_ports,
            "service_images": service_images,
        }
