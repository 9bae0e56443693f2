import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-uv.txt", "docker/horovod.txt")


def _lines(name: str) -> list[str]:
    """The lines of a lock file, one for each package."""
    text = re.sub(r"#.*", "", (ROOT / name).read_text()).replace("\\\n", " ")
    return list(filter(str.strip, text.splitlines()))


def _requirements(name: str) -> list[str]:
    """The packages of a lock file, without their hashes."""
    return [line.partition(" --hash")[0] for line in _lines(name)]


def _pins(name: str) -> dict[str, tuple[str, str]]:
    """Return version and hash options of each package of a lock file."""
    pins = {}
    for line in _lines(name):
        match = re.match(r"([\w.-]+)(?:\[.*?\])?==(\S+)(.*)", line)
        assert match, f"{name}: {line}"
        pins[_normal(match[1])] = (match[2], match[3])
    return pins


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"].values()
    listed = [*project["project"]["dependencies"], *(each for group in groups for each in group)]
    wanted = [requirement for requirement in listed if isinstance(requirement, str)]
    assert {"ruff", "pytest", "typer"} <= set(wanted)
    locked = _pins("requirements.lock")
    for requirement in wanted:
        match = re.match(r"([\w.-]+)\s*(?:==\s*([\w.]+?)(\.\*)?)?(?:[<>!~].*)?$", requirement)
        assert match, requirement
        assert _normal(match[1]) in locked, f"{requirement}: run make lock"
        version = locked[_normal(match[1])][0]
        if match[3]:
            assert version.startswith(f"{match[2]}."), f"{requirement}: run make lock"
        elif match[2]:
            assert version == match[2], f"{requirement}: run make lock"


@pytest.mark.parametrize("name", [*LOCKS, "docker/horovod-build.txt"])
def test_locks_hash_everything_and_name_no_host(name: str) -> None:
    for package, (_, hashes) in _pins(name).items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", hashes), package
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", (ROOT / name).read_text())


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_is_complete_for_every_supported_python(version: str) -> None:
    """What the installed packages require under a Python, the lock installs there."""
    environment = {"python_version": version, "python_full_version": f"{version}.9", "extra": ""}
    locked = {
        _normal(requirement.name)
        for requirement in map(Requirement, _requirements("requirements.lock"))
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
    for distribution in importlib.metadata.distributions():
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                needs = f"{distribution.name} needs {requirement}"
                assert _normal(requirement.name) in locked, f"{needs}: run make lock"


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (\S+)$", text, re.MULTILINE)
    assert set(targets) >= {"setup", "train-local", "evaluate", "predict", "test", "lint", "bench"}
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listed = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
    assert listed == targets
    assert all(len(line) <= 100 for line in printed.splitlines())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that `make setup` needs, without an environment."""
    folder = tmp_path / "clone"
    for name in ("Makefile", "tools/setup.sh", "tools/horovod.sh", *LOCKS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def _setup(
    clone: Path, commands: dict[str, str], python: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run setup.sh where only the basic commands and the given scripts are on the PATH."""
    folder = clone / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "rm", "cat", "chmod", "cmp", "cp", "env", "mkdir", "tee"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    for name, script in commands.items():
        path = folder / name
        path.write_text(f"#!{folder}/bash\n{script}\n")
        path.chmod(0o755)
    return subprocess.run(
        [str(clone / "tools/setup.sh")],
        env={"PATH": str(folder), "HOME": os.environ.get("HOME", "/"), "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_git_is_named(clone: Path) -> None:
    outcome = _setup(clone, {})
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: git is missing. Install it")


@pytest.mark.parametrize("commands", [{}, {"python3": "exit 1"}, {"python3.11": "exit 127"}])
def test_missing_python_is_named(clone: Path, commands: dict[str, str]) -> None:
    outcome = _setup(clone, {"git": "exit 0", **commands})
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: no Python 3.11, 3.12 or 3.13 was found")
    assert "apt install python3-venv" in outcome.stderr
    assert not (clone / ".venv").exists()


def test_missing_venv_module_is_named(clone: Path) -> None:
    python = 'case "$*" in *ensurepip*) exit 1;; *executable*) echo python3.13;; esac'
    outcome = _setup(clone, {"git": "exit 0", "python3.13": python})
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: python3.13 cannot make virtual environments")
    assert "its venv or ensurepip module is missing" in outcome.stderr


def test_the_environment_keeps_its_python(clone: Path) -> None:
    """Only `make setup PYTHON=` changes it, no other make command."""
    python = 'case "$*" in *ensurepip*) exit 1;; *executable*) echo "${0##*/}";; esac'
    (clone / ".venv").mkdir()
    (clone / ".venv/.made-from").write_text("python3.13\nhash requirements.lock\n")
    commands = {"git": "exit 0", "python3.11": python, "python3.13": python}
    outcome = _setup(clone, commands)
    assert outcome.stderr.startswith("error: python3.13 cannot make virtual environments")
    shutil.rmtree(clone / "bin")
    outcome = _setup(clone, commands, python="python3.11")
    assert outcome.stderr.startswith("error: python3.11 cannot make virtual environments")
    shutil.rmtree(clone / "bin")
    del commands["python3.13"]
    outcome = _setup(clone, commands)
    assert outcome.stderr.startswith("error: python3.11 cannot make virtual environments")


# A substitute for uv. Its Python has no venv module, so that setup stops there with an error.
UV = 'case "$*" in *find*) echo downloaded-python;; *) echo "$*" >>uv-calls;; esac'
DOWNLOADED = {"downloaded-python": "exit 1"}


def test_uv_downloads_a_python_where_there_is_none(clone: Path) -> None:
    outcome = _setup(clone, {"git": "exit 0", "uv": UV, **DOWNLOADED})
    assert (clone / "uv-calls").read_text() == "python install --quiet 3.11\n"
    assert outcome.stderr.startswith("error: downloaded-python cannot make virtual environments")


def test_an_unsupported_python_installs_uv_which_downloads_one(clone: Path) -> None:
    """Python 3.10 is too old for the project, and good enough to install uv with."""
    python = f"""case "$*" in
        *"(3, 11)"*) exit 1;;
        "-m venv .uv")
            mkdir -p .uv/bin
            printf '#!%s\\n' "{clone}/bin/bash" | tee .uv/bin/python >.uv/bin/uv
            cat >>.uv/bin/uv <<'EOF'
{UV}
EOF
            chmod +x .uv/bin/*;;
    esac"""
    outcome = _setup(clone, {"git": "exit 0", "python3": python, **DOWNLOADED})
    assert (clone / "uv-calls").read_text() == "python install --quiet 3.11\n"
    assert outcome.stderr.startswith("error: downloaded-python cannot make virtual environments")
    assert (clone / ".uv/.made-from").read_bytes() == (ROOT / "requirements-uv.txt").read_bytes()


def test_a_failed_download_says_what_to_do(clone: Path) -> None:
    outcome = _setup(clone, {"git": "exit 0", "uv": "echo no network >&2; exit 2"})
    assert outcome.returncode == 1
    assert "no network\nerror: no Python 3.11, 3.12 or 3.13 was found" in outcome.stderr
    assert "UV_PYTHON_INSTALL_MIRROR" in outcome.stderr


def test_the_python_that_was_asked_for_must_be_supported(clone: Path) -> None:
    outcome = _setup(
        clone, {"git": "exit 0", "uv": UV, "python3.14": "exit 1"}, python="python3.14"
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: PYTHON=python3.14 is not a Python 3.11, 3.12 or 3.13")


def test_a_target_says_which_variable_it_needs() -> None:
    outcome = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "predict", "CHECKPOINT=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 2
    assert "IMAGES= is missing" in outcome.stderr


def test_hyperparameters_reach_the_training() -> None:
    printed = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "--dry-run",
            "train-local",
            "DATA=/coco",
            "HPARAMS=lr=.1 epochs=3",
            "OUT=o",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert '--data "/coco"' in printed
    assert "--out \"o\" --set 'lr=.1' --set 'epochs=3'" in printed
    assert "cocodata mini" not in printed
