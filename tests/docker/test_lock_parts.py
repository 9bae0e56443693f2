"""The lock's parts that the image's layers install."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "lock_parts.py"
LAYERS = ("torch", "decoding", "rest")


def part(name: str, lock: Path = ROOT / "requirements.lock") -> str:
    command = [sys.executable, str(SCRIPT), name, str(lock)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def names(text: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))


def names_for_this_machine(text: str) -> set[str]:
    """Without those that the lock has for other systems or versions of Python."""
    lines = re.findall(r"^[a-z0-9-]+==[^\\\n]*", text, re.MULTILINE)
    wanted = [Requirement(line) for line in lines]
    return {each.name for each in wanted if each.marker is None or each.marker.evaluate()}


def project_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"]]


def test_the_image_installs_what_the_installed_packages_ask_for() -> None:
    # The packages' own metadata, followed from pyproject.toml, instead of the lock's comments.
    found: set[str] = set()
    waiting = project_requirements()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in found and not requirement.extras:
            continue
        try:
            needed = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed: this environment is not the lock's")
        found.add(name)
        waiting += [
            each
            for each in needed
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert names_for_this_machine(part("image")) == found


def test_the_layers_install_each_package_of_the_image_once() -> None:
    layers = {layer: names(part(layer)) for layer in LAYERS}
    assert sum(map(len, layers.values())) == len(names(part("image")))
    assert set.union(*layers.values()) == names(part("image"))
    assert {"torch", "triton", "nvidia-cublas", "nvidia-nccl-cu13"} <= layers["torch"]
    assert {"nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13"} <= layers["decoding"]
    assert {"determined", "timm", "numpy"} <= layers["rest"]
    assert "torch" not in names(part("horovod"))
    assert {"setuptools", "typing-extensions"} <= names(part("horovod"))


def test_every_requirement_keeps_its_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    image = part("image")
    blocks = re.split(r"^(?=[a-z0-9-]+==)", image, flags=re.MULTILINE)[1:]
    assert len(blocks) >= len(names(image)) > 100
    for block in blocks:
        assert "--hash=sha256:" in block
        assert block in lock


@pytest.mark.parametrize(
    ("package", "changed"),
    [
        ("pytest", ()),  # a tool of the developers
        ("ansible-core", ()),  # and one of the control machine
        ("absl-py", ("rest",)),
        ("nvidia-dali-cuda130", ("decoding",)),
        ("nvidia-cudnn-cu13", ("torch",)),
        ("sympy", ("rest",)),  # torch needs it, but it is small and changes by itself
    ],
)
def test_another_version_changes_one_layer(
    tmp_path: Path, package: str, changed: tuple[str, ...]
) -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert f"\n{package}==" in text
    (tmp_path / "lock").write_text(text.replace(f"\n{package}==", f"\n{package}==9"))
    for layer in LAYERS:
        assert (part(layer, tmp_path / "lock") != part(layer)) == (layer in changed), layer


def test_the_lock_satisfies_the_project() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", part("image"), re.MULTILINE))
    for requirement in project_requirements():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_an_unreadable_lock_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("torch==1.0\n")
    command = [sys.executable, str(SCRIPT), "torch", str(tmp_path / "lock")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "run make lock" in run.stderr
