"""Overlays: small YAML files that change an experiment's configuration for a purpose.

Determined's command line takes changes as `--config key.inner=value`. An overlay is a file of such
changes, and this module writes them out, so that the same overlay works with `make` and by hand.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ClusterError


def overlay_arguments(file: Path) -> list[str]:
    """The `--config` arguments of an overlay.

    Raises:
        ClusterError: The file is missing or is not a mapping.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise ClusterError(f"there is no overlay {file}") from error
    except yaml.YAMLError as error:
        raise ClusterError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ClusterError(f"{file} must be a mapping, as an experiment's configuration is")
    return config_arguments(content)


def config_arguments(changes: Mapping[str, Any]) -> list[str]:
    """`--config` arguments that make nested changes.

    Raises:
        ClusterError: A value cannot be written in that form.
    """
    return [part for key, value in _flatten(changes, "") for part in ("--config", f"{key}={value}")]


def _flatten(changes: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in changes.items():
        if "." in str(key):
            raise ClusterError(f"{prefix}{key}: a key with a dot cannot be given on a command line")
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _written(f"{prefix}{key}", value)


def _written(key: str, value: Any) -> str:
    """A value as Determined's command line reads it: JSON for lists, YAML for the rest."""
    if not isinstance(value, str):
        return json.dumps(value)
    if "," in value or value.startswith(("[", "{")) or yaml.safe_load(value) != value:
        raise ClusterError(
            f"{key}: the text {value!r} cannot be given on a command line, which reads it as "
            "something else; put it in the experiment's own file"
        )
    return value
