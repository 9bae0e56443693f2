"""Submits an experiment with Determined's own command line."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.connection import ROOT, Connection
from cluster.errors import ClusterError
from cluster.overlays import config_arguments
from experiments import provenance


def submit(connection: Connection, config: Path, arguments: Sequence[str]) -> int:
    """Create and activate an experiment; return its id.

    Args:
        connection: The cluster.
        config: The experiment's file.
        arguments: More of `det experiment create`'s arguments, such as `--config key=value`.

    Raises:
        ClusterError: The file is missing, or the master refuses the experiment.
    """
    if not config.is_file():
        raise ClusterError(f"there is no experiment file {config}")
    # This interpreter's own det, whatever is on the PATH.
    command = [sys.executable, "-m", "determined.cli", "experiment", "create"]
    command += [str(config), str(ROOT), "--template", connection.template, *arguments]
    commit = provenance.commit()
    if commit is not None:
        # The files that go along have no history: the report reads the commit from here.
        command += config_arguments({"labels": [f"commit:{commit}"]})
    run = subprocess.run(
        command,
        env={**os.environ, **connection.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    created = re.search(r"Created experiment (\d+)", run.stdout)
    if run.returncode or created is None:
        said = (run.stderr.strip() or run.stdout.strip()).splitlines()
        raise ClusterError("the experiment was not accepted:\n" + "\n".join(said[-20:]))
    return int(created[1])
