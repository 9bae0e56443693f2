import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-uv.txt", "docker/horovod.txt")


def _pins(name: str) -> dict[str, tuple[str, str]]:
    """Return version and hash options of each package of a lock file."""
    text = re.sub(r"#.*", "", (ROOT / name).read_text()).replace("\\\n", " ")
    pins = {}
    for line in filter(str.strip, text.splitlines()):
        match = re.match(r"([\w.-]+)(?:\[.*?\])?==(\S+)(.*)", line)
        assert match, f"{name}: {line}"
        pins[_normal(match[1])] = (match[2], match[3])
    return pins


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
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
    assert [line.split()[0] for line in printed.splitlines()] == targets
    assert all(len(line) <= 100 for line in printed.splitlines())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make setup` needs of the repository, without an environment."""
    folder = tmp_path / "clone"
    for name in ("Makefile", "tools/setup.sh", "tools/horovod.sh", *LOCKS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def _setup(clone: Path, commands: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run setup.sh where only the basic commands and the given scripts are on the PATH."""
    folder = clone / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "rm", "cat", "cmp", "cp", "env"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    for name, script in commands.items():
        path = folder / name
        path.write_text(f"#!{folder}/bash\n{script}\n")
        path.chmod(0o755)
    return subprocess.run(
        [str(clone / "tools/setup.sh")],
        env={"PATH": str(folder), "HOME": os.environ.get("HOME", "/")},
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
    assert outcome.stderr.startswith("error: Python 3.11 is missing")
    assert "apt install python3.11-venv" in outcome.stderr
    assert not (clone / ".venv").exists()


def test_missing_venv_module_is_named(clone: Path) -> None:
    python = 'case "$*" in *ensurepip*) exit 1;; *executable*) echo python3.11;; esac'
    outcome = _setup(clone, {"git": "exit 0", "python3.11": python})
    assert outcome.returncode == 1
    assert "its venv or ensurepip module is missing" in outcome.stderr


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
