"""Imports: the table of docs/architecture.md, layers within packages, no circles.

Imports within functions and for type checking count too.
"""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from cocodata.sync.connection import DATASET_PROGRAM, SWARM_MODULES
from container_images.send import PROGRAM

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "cocodata": ROOT / "data-prep" / "cocodata",
    **{
        name: ROOT / name
        for name in (
            *("model", "reporting", "experiments", "cluster"),
            *("container_images", "bench", "docker", "ansible", "tools"),
        )
    },
}
# Each folder or module imports only from those before it, and from itself.
LAYERS = {
    "cocodata": [
        *("errors", "files", "text"),
        *("format", "download", "checks", "mini", "sync", "__main__"),
    ],
    "experiments": [
        *("settings", "runtime", "checkpoints", "input", "evaluation", "training"),
        *("evaluate", "predict", "train"),
    ],
}
# Run on hosts that have nothing but the standard library and these modules.
SENT_TO_HOSTS = {
    *(f"cocodata.sync.{name}" for name in ("torrent", "store", "agent")),
    *(f"container_images.{name}" for name in ("archive", "engine", "host")),
}


def modules() -> dict[str, Path]:
    """The project's files by module name; a package's is its __init__.py."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


FILES = modules()


def imported(file: Path) -> Iterator[str]:
    """Names of all modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{file}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


IMPORTS = {module: set(imported(file)) for module, file in FILES.items()}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def rows() -> dict[str, str]:
    """Package -> what it may import, from the table in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| `(?:data-prep/)?(\w+)/` \|[^|]*\|([^|]*)\|", text, re.M)
    return {package: allowed.strip() for package, allowed in table}


def test_no_circle() -> None:
    graph = {module: names & FILES.keys() for module, names in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_the_table_allows(package: str) -> None:
    row = rows()[package]
    if row == "everything":
        return
    allowed = {package, *re.findall(r"`(\w+)`", row)}
    for module, names in IMPORTS.items():
        if package_of(module) == package:
            of_project = {package_of(name) for name in names if name in FILES}
            assert of_project <= allowed, module


def test_third_party_packages_of_the_detector() -> None:
    allowed = {"model", *rows()["model"].split(", "), *sys.stdlib_module_names}
    for module, names in IMPORTS.items():
        if package_of(module) == "model":
            assert {package_of(name) for name in names} <= allowed, module


def test_data_sets_need_no_torch() -> None:
    assert rows()["cocodata"] == "no torch"
    for module, names in IMPORTS.items():
        if package_of(module) == "cocodata":
            assert "torch" not in {package_of(name) for name in names}, module


def test_callers_of_the_detector_import_what_it_offers() -> None:
    for module, names in IMPORTS.items():
        if package_of(module) != "model":
            assert not [name for name in names if name.startswith("model.")], module


@pytest.mark.parametrize("package", LAYERS)
def test_layers_import_only_downwards(package: str) -> None:
    layers = LAYERS[package]

    def layer(module: str) -> int:
        return layers.index(module.split(".")[1])

    for module, names in IMPORTS.items():
        if module.startswith(f"{package}."):
            within = [name for name in names if name.startswith(f"{package}.")]
            assert [name for name in within if layer(name) > layer(module)] == [], module


def test_what_is_sent_to_hosts_needs_nothing_else() -> None:
    assert {*SWARM_MODULES, *DATASET_PROGRAM.modules, *PROGRAM.modules} == SENT_TO_HOSTS
    for module in SENT_TO_HOSTS:
        of_project = {name for name in IMPORTS[module] if name in FILES}
        assert of_project <= SENT_TO_HOSTS, module
