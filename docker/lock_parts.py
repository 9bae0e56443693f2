"""Prints those requirements of the lock that one layer of the task image installs.

    python3 docker/lock_parts.py PART [LOCK]

The lock also holds what the control machine and the developers' tools need. PART is one of

    image     everything that the image installs: what pyproject.toml's dependencies lead to
    torch     of these, torch, and the CUDA libraries that it and Horovod load
    decoding  of these, DALI, and the libraries that only it loads
    rest      all others
    horovod   what torch needs to be imported, and setuptools, which Horovod is built with

torch, decoding and rest are layers, so that a new version of one package sends its own layer to
the hosts, and not the gigabytes of CUDA. Needs nothing but the standard library: the image name is
computed on machines where nothing is installed yet.
"""

import re
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
PARTS = ("image", "torch", "decoding", "rest", "horovod")
# How the lock names pyproject.toml's dependencies; those of its groups end in ":GROUP)".
PROJECT = "(pyproject.toml)"
# Large and changed together: everything else in torch's list is small and changes at other times.
CUDA = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
DALI = re.compile(r"nvidia-dali-.*$")


def read_lock(text: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Each package's requirement with its hashes, and the packages that need it.

    The second comes from the comments `# via NAME` that `uv pip compile` writes. A package that
    stands twice, with versions for different machines, keeps both requirements.
    """
    requirements: dict[str, str] = {}
    needed_by: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        if start := re.match(r"([A-Za-z0-9._-]+)(\[[^]]*\])?==", line):
            name = start[1]
            requirements.setdefault(name, "")
            needed_by.setdefault(name, set())
        if line.startswith("    #"):
            via = re.sub(r"^ *#( *via)? *", "", line)
            if via:
                needed_by[name].add(via.split()[-1])
        elif name:
            requirements[name] += line + "\n"
    return requirements, needed_by


def needs(roots: set[str], needed_by: dict[str, set[str]]) -> set[str]:
    """The packages that any of `roots` leads to, with the roots that are packages themselves."""
    found = roots & needed_by.keys()
    while more := {
        name for name, users in needed_by.items() if name not in found and users & (found | roots)
    }:
        found |= more
    return found


def names_of_part(part: str, needed_by: dict[str, set[str]]) -> set[str]:
    """The names of a part's packages."""
    image = needs({PROJECT}, needed_by)
    cuda = {name for name in image if CUDA.match(name)}
    dali = {name for name in cuda if DALI.match(name)}
    torch = needs(cuda - needs(dali, needed_by), needed_by) & cuda
    parts = {
        "image": image,
        "torch": torch,
        "decoding": cuda - torch,
        "rest": image - cuda,
        "horovod": needs({"torch", "setuptools"}, needed_by) - torch,
    }
    return parts[part]


def main(arguments: list[str]) -> None:
    """Print a part."""
    if not arguments or arguments[0] not in PARTS or len(arguments) > 2:
        raise SystemExit(f"usage: lock_parts.py {'|'.join(PARTS)} [LOCK]")
    lock = Path(arguments[1]) if len(arguments) == 2 else LOCK
    requirements, needed_by = read_lock(lock.read_text())
    names = names_of_part(arguments[0], needed_by)
    if not names:
        raise SystemExit(f"error: {lock} has no packages of the part {arguments[0]}; run make lock")
    for name in sorted(names):
        print(requirements[name], end="")


if __name__ == "__main__":
    main(sys.argv[1:])
