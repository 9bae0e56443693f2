"""The lists of what the build removes from the image's environment."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "remove-unused.sh"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Site-packages with some files, in place of the image's."""
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for file in ("a/tests/one.py", "a/b/tests/two.py", "a/used.py", "a/lib.so"):
        (packages / file).parent.mkdir(parents=True, exist_ok=True)
        (packages / file).touch()
    return packages


def remove(environment: Path, tmp_path: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT.read_text().replace("/opt/venv/", f"{environment.parents[2]}/"))
    (tmp_path / "unused.txt").write_text("\n".join(lines) + "\n")
    command = ["bash", str(script), str(tmp_path / "unused.txt")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_a_list_names_is_removed(environment: Path, tmp_path: Path) -> None:
    done = remove(environment, tmp_path, "# Tests.", "", "a/**/tests", "a/*.so")
    assert done.returncode == 0, done.stderr
    left = [path.relative_to(environment) for path in environment.rglob("*") if path.is_file()]
    assert left == [Path("a/used.py")]


def test_a_line_that_matches_nothing_ends_the_build(environment: Path, tmp_path: Path) -> None:
    done = remove(environment, tmp_path, "a/tests", "a/missing*")
    assert done.returncode == 1
    assert done.stderr == "error: unused.txt: nothing in the environment matches a/missing*\n"
