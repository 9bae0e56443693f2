"""Fixtures for the plugins, which Ansible loads by their path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Ansible replaces sys.intern, after which torch cannot be imported, which later tests need.
import torch._dynamo  # noqa: F401

from tests.ansible.rendering import render

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"


def load(path: str) -> ModuleType:
    """Import a file in ansible/ by its path, as Ansible does."""
    name = "ansible_under_test_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ANSIBLE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each case and host, with its rendered templates."""
    out = tmp_path_factory.mktemp("rendered")
    render(out)
    return out


@pytest.fixture(scope="session")
def firewall() -> ModuleType:
    return load("filter_plugins/firewall.py")


@pytest.fixture(scope="session")
def checks() -> ModuleType:
    return load("filter_plugins/checks.py")


@pytest.fixture(scope="session")
def doctor() -> ModuleType:
    return load("filter_plugins/doctor.py")


@pytest.fixture(scope="session")
def status() -> ModuleType:
    return load("filter_plugins/status.py")


@pytest.fixture(scope="session")
def addresses() -> ModuleType:
    return load("filter_plugins/addresses.py")


@pytest.fixture(scope="session")
def services() -> ModuleType:
    return load("filter_plugins/services.py")


@pytest.fixture(scope="session")
def daemon_settings() -> ModuleType:
    return load("filter_plugins/daemon_settings.py")


@pytest.fixture(scope="session")
def daemon_json() -> ModuleType:
    return load("library/daemon_json.py")


@pytest.fixture(scope="session")
def host_probe() -> ModuleType:
    return load("library/host_probe.py")
