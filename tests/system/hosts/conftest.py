"""Three test hosts with an inventory, and a data set for them."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.hosts import hosts as test_hosts
from tests.system.hosts.testing import BUNDLE, INTERNET, PROXY, ROOT, SMALL_IMAGE, Hosts


def _settings() -> dict[str, Any]:
    """What the variables change of the inventory."""
    settings: dict[str, Any] = {}
    if SMALL_IMAGE:
        settings["task_image"] = SMALL_IMAGE
    if BUNDLE:
        settings["offline_bundle"] = str(Path(BUNDLE).resolve())
    if PROXY:
        url = test_hosts.PROXY_URL
        settings["proxy"] = {"http_proxy": url, "https_proxy": url}
    return settings


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if os.environ.get("TEST_HOSTS") != "yes":
        pytest.skip("takes 45 minutes and 75 GB of disk; make test-hosts runs it")
    reason = test_hosts.why_unavailable()
    if reason is None and PROXY and shutil.which("tinyproxy") is None:
        reason = "tinyproxy is not installed"
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    with contextlib.ExitStack() as stack:
        stack.enter_context(test_hosts.hosts(3, internet=INTERNET))
        if PROXY:
            stack.enter_context(test_hosts.proxy(folder))
        yield Hosts(folder, _settings())


@pytest.fixture(scope="module")
def packed(mini_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a packed data set: real images where COCO_TINY names some."""
    folder = tmp_path_factory.mktemp("dataset")
    source = Path(os.environ.get("COCO_TINY") or mini_coco)
    data = folder / "coco"
    shutil.copytree(source, data, ignore=shutil.ignore_patterns("README*", "manifest.json"))
    subprocess.run(["chmod", "-R", "u+w", str(data)], check=True)
    for command in (["verify", data], ["pack", data, folder / "packed", "--name", "coco"]):
        subprocess.run([sys.executable, "-m", "cocodata", *command], cwd=ROOT, check=True)
    return folder / "packed"
