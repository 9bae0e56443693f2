"""Writes to the cluster's object store, reads from it or deletes what was written, as a trial does.

Runs in the task image: `python -c SCRIPT write|read|remove NAME [HOST]`. Standard input is JSON:
Determined's settings of the checkpoint storage, and environment variables such as a proxy's. Errors
are printed as one line on standard error.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from determined.common import storage


def main(action: str, name: str, host: str = "") -> None:
    """Perform one action: write, read or remove.

    Raises:
        Exception: The store's client failed.
        ValueError: The content read differs from the content written.
    """
    settings = json.load(sys.stdin)
    os.environ.update(settings["environment"])
    store = storage.build(settings["storage"], container_path=None)
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
            raise ValueError(f"{name} was read back with different content")
        store.upload(folder, f"{name}/{host}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
