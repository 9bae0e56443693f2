"""An experiment's configuration: one YAML format with and without a cluster, Determined's own.

The trial reads `hyperparameters`, `data`, the periods and the searcher's metric from it; the rest
(resources, mounts, image) is Determined's and does nothing off a cluster.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.settings.hparams import HParamError, HParams, parse_hparams

_UNITS = ("batches", "epochs", "records")
_LENGTHS = ("min_validation_period", "min_checkpoint_period", "max_length")
_DATA_KEYS = ("path", "train", "val", "version")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says where and what to do."""


@dataclass(frozen=True)
class Period:
    """Every so many batches, epochs or records; 0 is never."""

    value: int = 0
    unit: str = "batches"

    def batches(self, batches_per_epoch: int, global_batch_size: int) -> int:
        """The period in batches, at least one; 0 is never."""
        if not self.value:
            return 0
        factor = {"batches": 1.0, "epochs": batches_per_epoch, "records": 1 / global_batch_size}
        return max(1, round(self.value * factor[self.unit]))


@dataclass(frozen=True)
class ExperimentConfig:
    """What the trial needs of an experiment's configuration."""

    hparams: HParams
    data: Path
    train_split: str | None
    val_split: str | None
    # The version that the data set's manifest must have on every machine; None: any.
    data_version: str | None
    metric: str
    smaller_is_better: bool
    validation_period: Period
    checkpoint_period: Period
    reporting_batches: int
    checkpoint_policy: str
    raw: Mapping[str, Any]


def read_yaml(path: Path) -> dict[str, Any]:
    """The configuration in a file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
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


def apply_settings(config: dict[str, Any], settings: Sequence[str]) -> None:
    """Set hyperparameters given as name=value, values read as YAML.

    Raises:
        ConfigError: a setting without a name or an equals sign.
    """
    hyperparameters = config.setdefault("hyperparameters", {})
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: write name=value, such as --set lr=0.01")
        hyperparameters[name.strip()] = yaml.safe_load(value)


def apply_overlay(config: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    """Change a configuration: mappings merge, all other values replace.

    A mapping that names its kind replaces too, since what belongs to another kind would be refused
    next to it.
    """
    for key, value in overlay.items():
        inner = config.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(inner, dict)
            and not names_its_kind(key, value)
        ):
            apply_overlay(inner, value)
        else:
            config[key] = copy.deepcopy(value)


def names_its_kind(key: str, value: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of several kinds, and so must be given whole.

    These are periods, whose unit is their key; ranges to search and checkpoint storage, with
    their `type`; and the searcher, with its `name`.
    """
    if key in _LENGTHS:
        return any(unit in value for unit in _UNITS)
    return ("name" if key == "searcher" else "type") in value


def _period(config: Mapping[str, Any], key: str) -> Period:
    value = config.get(key)
    if value is None:
        return Period()
    if isinstance(value, Mapping) and len(value) == 1:
        ((unit, count),) = value.items()
        if unit in _UNITS and isinstance(count, int) and not isinstance(count, bool) and count >= 0:
            return Period(count, unit)
    raise ConfigError(f"{key}: is {value!r}; write one of {_UNITS}, such as {{epochs: 1}}")


def require_search_length(raw: Mapping[str, Any]) -> None:
    """See that a search over epochs has its trials' length, where the file says both.

    Raises:
        ConfigError: it would stop trials before their end, or wait for epochs that never come.
    """
    searcher = raw.get("searcher") or {}
    hyperparameters = _plain_hyperparameters(raw)
    names = ("epochs", "cooldown_epochs")
    given = {name: hyperparameters[name] for name in names if name in hyperparameters}
    max_time = searcher.get("max_time")
    if max_time is None or searcher.get("time_metric") != "epochs":
        return
    if any(isinstance(value, Mapping) for value in given.values()):
        return  # the search chooses the length
    hparams = parse_hparams({"warmup_epochs": 0, **given})
    if max_time != hparams.total_epochs:
        raise ConfigError(
            f"searcher.max_time: is {max_time}, but a trial trains for {hparams.total_epochs} "
            f"epochs (epochs {hparams.epochs} + cooldown_epochs {hparams.cooldown_epochs}); "
            f"write max_time: {hparams.total_epochs}, or change the hyperparameters"
        )


def _plain_hyperparameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's hyperparameters; a constant that is written out as such is its value."""
    return {
        name: value["val"] if isinstance(value, Mapping) and value.get("type") == "const" else value
        for name, value in (raw.get("hyperparameters") or {}).items()
    }


def parse_config(
    raw: Mapping[str, Any], hyperparameters: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """Check a configuration and take from it what the trial needs.

    Args:
        raw: the configuration as YAML or Determined's master gives it.
        hyperparameters: the trial's own values, where a searcher chose them.

    Raises:
        ConfigError: a section that is wrong.
        HParamError: hyperparameters that are refused.
    """
    if hyperparameters is None:
        hyperparameters = _plain_hyperparameters(raw)
    data = raw.get("data") or {}
    if not isinstance(data, Mapping) or not data.get("path"):
        raise ConfigError(
            "data: names no folder; write data: {path: /data/coco} or give --data FOLDER"
        )
    unknown = [key for key in data if key not in _DATA_KEYS]
    if unknown:
        raise ConfigError(f"data: has no setting {unknown}; it has {list(_DATA_KEYS)}")
    optimizations = raw.get("optimizations") or {}
    if optimizations.get("aggregation_frequency", 1) != 1:
        raise ConfigError(
            "optimizations.aggregation_frequency: batches are not added up, so that a batch is "
            "one optimizer step; raise hyperparameters.global_batch_size instead"
        )
    if raw.get("records_per_epoch"):
        raise ConfigError("records_per_epoch: an epoch is the training split; remove the setting")
    searcher = raw.get("searcher") or {}
    hparams = parse_hparams(hyperparameters)
    if optimizations.get("gradient_compression"):
        raise HParamError(
            "optimizations.gradient_compression: set the hyperparameter fp16_compression instead"
        )
    return ExperimentConfig(
        hparams=hparams,
        data=Path(data["path"]),
        train_split=data.get("train"),
        val_split=data.get("val"),
        data_version=data.get("version"),
        metric=searcher.get("metric", "AP"),
        smaller_is_better=bool(searcher.get("smaller_is_better", False)),
        validation_period=_period(raw, "min_validation_period"),
        checkpoint_period=_period(raw, "min_checkpoint_period"),
        reporting_batches=int(raw.get("scheduling_unit") or 100),
        checkpoint_policy=raw.get("checkpoint_policy") or "best",
        raw=raw,
    )
