#!/usr/bin/python
"""Measures how fast the files of a folder are read, bypassing the page cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: read_rate
short_description: Measure how fast a folder's files are read
description:
  - Drops each file from the page cache, then reads it, up to a number of bytes or seconds.
options:
  path:
    description: The folder.
    type: path
    required: true
  megabytes:
    description: The maximum to read.
    type: int
    default: 512
  seconds:
    description: The maximum duration.
    type: int
    default: 5
author: The project's authors
"""

BLOCK = 1024 * 1024


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names)


def measure(folder: Path, limit: int, seconds: float) -> tuple[int, float]:
    """Return the bytes read and the seconds that it took."""
    read, started = 0, time.monotonic()
    spent = 0.0
    for file in _files(folder):
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.monotonic()
            while read < limit and (block := stream.read(BLOCK)):
                read += len(block)
            spent += time.monotonic() - begun
        if read >= limit or time.monotonic() - started > seconds:
            break
    return read, spent


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "megabytes": {"type": "int", "default": 512},
            "seconds": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    limit = module.params["megabytes"] * BLOCK
    read, spent = measure(folder, limit, module.params["seconds"])
    module.exit_json(changed=False, bytes=read, seconds=spent)


if __name__ == "__main__":
    main()
