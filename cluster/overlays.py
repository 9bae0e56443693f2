"""Overlays: small YAML files that change an experiment's configuration for a purpose.

Determined's command line takes changes as `--config key.inner=value`. An overlay is a file of such
changes, and this module writes them out, so that the same overlay works with `make` and by hand.
Determined merges every mapping; one that must replace what is there is set to null first.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import ClusterError
from experiments.settings.experiment import ConfigError, apply_overlay, names_its_kind, read_yaml


def overlay_arguments(files: Sequence[Path]) -> list[str]:
    """The `--config` arguments of overlays, of which a later one changes those before it.

    Raises:
        ClusterError: A file is missing or is not a mapping.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            apply_overlay(merged, read_yaml(file))
        except ConfigError as error:
            raise ClusterError(f"overlay {error}") from error
    return config_arguments(merged)


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
            if names_its_kind(str(key), value):
                yield f"{prefix}{key}", "null"
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _written(f"{prefix}{key}", value)


def _written(key: str, value: Any) -> str:
    """A value as Determined's command line reads it: YAML on one line."""
    if not isinstance(value, str):
        # Not JSON, whose 1e-05 is a text in YAML.
        dumped = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize)
        return dumped.removesuffix("...\n").strip()
    if "," in value or value.startswith(("[", "{")) or yaml.safe_load(value) != value:
        raise ClusterError(
            f"{key}: the text {value!r} cannot be given on a command line, which reads it as "
            "something else; put it in the experiment's own file"
        )
    return value
