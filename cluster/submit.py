"""Submits an experiment."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from determined.cli import ntsc
from determined.common import api

from cluster.capacity import require_capacity
from cluster.connection import ROOT, MasterConnection, translate_errors
from cluster.errors import ClusterError
from experiments.runtime import provenance
from experiments.settings.experiment import (
    ConfigError,
    parse_config,
    read_yaml,
    require_search_length,
)
from experiments.settings.hparams import HParamError


def load_submittable_config(config: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Validate an experiment's configuration with its changes, before it is submitted.

    For a search, only the file and its length are checked; trials check the values they are given.

    Returns:
        The configuration with the changes applied.

    Raises:
        ClusterError: A setting is invalid; the message lists all invalid settings.
    """
    changes = arguments[1::2]  # each after its --config
    try:
        content = _apply_changes(config, changes)
        if (content.get("searcher") or {}).get("name") == "single":
            parse_config(content)
        else:
            require_search_length(content)
    except (ConfigError, HParamError, ValueError) as error:
        raise ClusterError(f"{config}: {error}") from error
    return content


def _apply_changes(config: Path, changes: Sequence[str]) -> dict[str, Any]:
    content = read_yaml(config)
    try:
        return dict(ntsc.parse_config_overrides(content, changes))
    except TypeError as error:
        # Determined raises a bare TypeError if it cannot merge them.
        raise ConfigError(
            "a change replaces a plain value with a mapping, which --config cannot do: edit a copy "
            "of the file instead"
        ) from error


def submit(connection: MasterConnection, config: Path, arguments: Sequence[str]) -> int:
    """Create and activate an experiment; return its id.

    Args:
        connection: The cluster.
        config: The experiment's configuration file.
        arguments: Changes to it, as alternating `--config` and `key.inner=value`.

    Raises:
        ClusterError: The file is missing or invalid, the cluster is too small, or the master
            rejects the experiment.
    """
    content = load_submittable_config(config, arguments)
    resources = content.get("resources") or {}
    slots = resources.get("slots_per_trial", 1)
    if isinstance(slots, int):  # the master rejects anything else
        print(require_capacity(connection, slots, resources.get("resource_pool")), flush=True)
    commit = provenance.commit()
    if commit is not None:
        # The submitted files have no Git history; the report reads the commit from this label.
        content["labels"] = [f"commit:{commit}"]
    with translate_errors(connection):
        client = connection.login()
        try:
            # It prints how many files it sends.
            with contextlib.redirect_stdout(io.StringIO()):
                created = client.create_experiment(content, ROOT, template=connection.template)
        except (api.errors.APIException, ValueError) as error:
            raise ClusterError(f"the master rejected the experiment:\n{error}") from error
    return created.id
