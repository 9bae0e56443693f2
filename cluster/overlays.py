"""Overlays: small YAML files of changes to an experiment's configuration.

This module converts them into Determined's `--config key.inner=value` arguments, so that the same
overlay works with `make` and with `det`. Determined merges mappings; a mapping that must replace
the existing one is set to null first.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ClusterError
from experiments.settings.yaml_files import ConfigError, merge, names_kind, read_yaml


def overlay_arguments(files: Sequence[Path]) -> list[str]:
    """Return the `--config` arguments for overlays; later ones override earlier ones.

    Raises:
        ClusterError: A file is missing or is not a mapping.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            merged = merge(merged, read_yaml(file))
        except ConfigError as error:
            raise ClusterError(f"overlay {error}") from error
    return config_arguments(merged)


def config_arguments(changes: Mapping[str, Any]) -> list[str]:
    """Return the `--config` arguments for nested changes.

    Raises:
        ClusterError: A key or value cannot be expressed as an argument.
    """
    return [part for key, value in _flatten(changes, "") for part in ("--config", f"{key}={value}")]


def _flatten(changes: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in changes.items():
        if "." in str(key):
            raise ClusterError(
                f"{prefix}{key}: a key that contains a dot cannot be set on the command line; put "
                "it in the experiment's own file"
            )
        if isinstance(value, Mapping) and value:
            if names_kind(str(key), value):
                yield f"{prefix}{key}", "null"
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _to_yaml(f"{prefix}{key}", value)


def _to_yaml(key: str, value: Any) -> str:
    """Format a value as one line of YAML, which is how `det` parses it."""
    if not isinstance(value, str):
        # Not JSON: its 1e-05 is a string in YAML.
        dumped = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize)
        return dumped.removesuffix("...\n").strip()
    if "," in value or value.startswith(("[", "{")) or yaml.safe_load(value) != value:
        raise ClusterError(
            f"{key}: the string {value!r} cannot be passed on the command line, where it would be "
            "parsed as something else; put it in the experiment's own file"
        )
    return value
