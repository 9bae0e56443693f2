"""The list of services, and what each host and each check needs of it."""

import re
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.ansible.conftest import ANSIBLE

LIST = ANSIBLE / "group_vars/all/services.yml"
BOTH = ["master", "agents"]


@pytest.fixture
def listed() -> dict[str, dict[str, Any]]:
    """The list, with every service enabled and its templates as they are."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load(LIST.read_text())["cluster_services"]
    for service in entries.values():
        service["enabled"] = True
    return entries


def test_units_of_a_host(services: ModuleType, listed: dict[str, Any]) -> None:
    agent = services.expected_units(listed, ["agents"])
    assert agent == ["determined-agent.service", "determined-firewall.service"]
    master = services.expected_units(listed, ["master"])
    assert set(services.expected_units(listed, BOTH)) == {*master, *agent}
    listed["postgres"]["enabled"] = False
    missing = set(master) - set(services.expected_units(listed, ["master"]))
    assert missing == {"determined-postgres.service"}


def test_services_are_stopped_before_those_that_they_use(
    services: ModuleType, listed: dict[str, Any]
) -> None:
    units = services.removable_units(listed)
    names = [unit.removeprefix("determined-").removesuffix(".service") for unit in units]
    timers = ["agent-health.timer", "master-health.timer", "postgres-health.timer"]
    assert names[:3] == timers
    assert names[3:] == ["agent", "master", "postgres", "firewall"]


def test_a_host_removes_disabled_services_too(services: ModuleType, listed: dict[str, Any]) -> None:
    """A service may have been disabled after it was installed."""
    before = services.removable_units(listed)
    listed["firewall"]["enabled"] = False
    assert services.removable_units(listed) == before


def test_ports_and_images_of_a_host(services: ModuleType, listed: dict[str, Any]) -> None:
    ports = services.preflight_ports(listed, BOTH)
    assert list(ports) == ["master_port", "postgres_port"]
    assert services.preflight_ports(listed, ["agents"]) == {}
    assert services.service_images(listed, ["agents"]) == ["{{ agent_image }}"]
    assert len(services.service_images(listed, BOTH)) == 3


def test_no_other_file_spells_out_a_unit() -> None:
    """Playbooks, roles and plugins take the names of units from the list."""
    names = "agent|master|postgres|firewall"
    found = [
        f"{file.relative_to(ANSIBLE)}: {line.strip()}"
        for file in sorted(ANSIBLE.rglob("*"))
        if file.suffix in {".yml", ".j2", ".py"} and file != LIST
        for line in file.read_text().splitlines()
        if re.search(rf"\bdetermined-({names})\b", line)
    ]
    assert found == []
