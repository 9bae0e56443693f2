"""Experiment files and the changes made to them: overlays, and hyperparameters given one by one."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PERIOD_UNITS = ("batches", "epochs", "records")
_LENGTHS = ("min_validation_period", "min_checkpoint_period", "max_length")


class ConfigError(ValueError):
    """An invalid configuration; the message says where it is wrong and what to do."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, is {type(content).__name__}")
    return content


def merge(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with an overlay's changes: mappings merge, other values replace.

    A mapping that names its kind replaces as well, since the settings of one kind would be invalid
    next to those of another.
    """
    merged = {**config}
    for key, value in overlay.items():
        old = config.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not names_kind(key, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def names_kind(key: str, value: Mapping[str, Any]) -> bool:
    """Whether a mapping selects one of several kinds, and therefore has to be given as a whole.

    These are periods, whose key is their unit; search ranges and checkpoint storage, which have a
    `type`; and the searcher, which has a `name`.
    """
    if key in _LENGTHS:
        return any(unit in value for unit in PERIOD_UNITS)
    return ("name" if key == "searcher" else "type") in value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Hyperparameters written as name=value, with values in YAML.

    Raises:
        ConfigError: a setting without a name or an equals sign.
    """
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: write name=value, such as --set lr=0.01")
        values[name.strip()] = yaml.safe_load(value)
    return values
