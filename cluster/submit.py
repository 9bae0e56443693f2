"""Submits an experiment with Determined's own command line."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from determined.cli import ntsc

from cluster.capacity import require_capacity
from cluster.connection import ROOT, MasterConnection
from cluster.errors import ClusterError
from cluster.overlays import config_arguments
from experiments.runtime import provenance
from experiments.settings.experiment import (
    ConfigError,
    parse_config,
    read_yaml,
    require_search_length,
)
from experiments.settings.hparams import HParamError


def load_submittable_config(config: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """See that the trial will take an experiment's settings, before anything is submitted.

    Of a search only the file and its length are looked at: its trials refuse values of their own.

    Returns:
        The experiment's configuration with its changes.

    Raises:
        ClusterError: A setting is refused; the message lists all that are.
    """
    changes = arguments[1::2]  # each after its --config
    try:
        content = _changed(config, changes)
        if (content.get("searcher") or {}).get("name") == "single":
            parse_config(content)
        else:
            require_search_length(content)
    except (ConfigError, HParamError, ValueError) as error:
        raise ClusterError(f"{config}: {error}") from error
    return content


def _changed(config: Path, changes: Sequence[str]) -> dict[str, Any]:
    content = read_yaml(config)
    try:
        return dict(ntsc.parse_config_overrides(content, changes))
    except TypeError as error:
        # All that Determined says where it cannot merge them.
        raise ConfigError(
            "a change puts a mapping where the file has a plain value, which --config cannot do: "
            "write it into a copy of the file"
        ) from error


def submit(connection: MasterConnection, config: Path, arguments: Sequence[str]) -> int:
    """Create and activate an experiment; return its id.

    Args:
        connection: The cluster.
        config: The experiment's file.
        arguments: Changes to it: `--config` and `key.inner=value` in turn.

    Raises:
        ClusterError: The file is missing or unsound, the cluster is too small for it, or the
            master refuses the experiment.
    """
    content = load_submittable_config(config, arguments)
    slots = (content.get("resources") or {}).get("slots_per_trial", 1)
    if isinstance(slots, int):  # what is no number, the master refuses with its own words
        require_capacity(connection, slots)
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
