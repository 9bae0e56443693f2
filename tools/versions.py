"""Reads versions.env: the versions and images that the project uses.

The Makefile includes that file, docker/image-name.sh sources it and Ansible reads single values;
Python code reads it only through this module.
"""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read_variables(file: Path) -> dict[str, str]:
    """The variables in a file of NAME=VALUE lines; empty if the file does not exist."""
    if not file.is_file():
        return {}
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def read_versions() -> dict[str, str]:
    """The variables of versions.env."""
    return read_variables(ROOT / "versions.env")


def task_image() -> str:
    """The task image's name; its tag is a hash of what the image is built from."""
    command = [str(ROOT / "docker" / "image-name.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
