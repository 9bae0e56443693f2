"""Writes to the cluster's object store, reads from it or removes what was written, as a trial does.

Runs in the task image: `python -c SCRIPT write|read|remove NAME [HOST]`, with Determined's settings
of the checkpoint storage as JSON on standard input. One line on standard error says what is wrong.
"""

import json
import sys
import tempfile
from pathlib import Path

from determined.common import storage


def main(action: str, name: str, host: str = "") -> None:
    """Do one of the three.

    Raises:
        Exception: Whatever the store's client raises.
        ValueError: What was read is not what was written.
    """
    store = storage.build(json.load(sys.stdin), container_path=None)
    if action == "remove":
        store.delete(name, ["**/*"])
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "written")
        if action == "write":
            file.write_text(name)
            store.upload(folder, name)
            return
        store.download(name, folder)
        if file.read_text() != name:
            raise ValueError(f"{name} is not what was written")
        store.upload(folder, f"{name}/{host}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
