"""An experiment's configuration: one YAML format, Determined's, with and without a cluster.

Training reads `hyperparameters`, `data`, the periods and the searcher's metric from it. The rest
(resources, mounts, image) is for Determined and has no effect without a cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.settings.hparams import HParamError, HParams, parse_hparams
from experiments.settings.yaml_files import (
    PERIOD_UNITS,
    ConfigError,
    merge,
    parse_settings,
    read_yaml,
)

_DATA_KEYS = ("path", "train", "val", "version")


@dataclass(frozen=True)
class Period:
    """A number of batches, epochs or records; 0 means never."""

    value: int = 0
    unit: str = "batches"

    def batches(self, batches_per_epoch: int, global_batch_size: int) -> int:
        """The period in batches, at least one; 0 means never."""
        if not self.value:
            return 0
        factor = {"batches": 1.0, "epochs": batches_per_epoch, "records": 1 / global_batch_size}
        return max(1, round(self.value * factor[self.unit]))


@dataclass(frozen=True)
class ExperimentConfig:
    """The validated settings of one trial."""

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
    # False in a search, which chooses hyperparameters and may stop trials early.
    single: bool
    # The whole file with its overlays and settings, as Determined wants it.
    raw: Mapping[str, Any]


def load_config(
    file: Path,
    *,
    overlays: Sequence[Path] = (),
    settings: Sequence[str] = (),
    data: Path | None = None,
) -> ExperimentConfig:
    """Read an experiment file, apply all changes to it, and validate the result.

    Paths become absolute, so that they stay valid when the working directory changes.

    Args:
        file: an experiment's YAML file.
        overlays: YAML files with changes, applied in turn.
        settings: hyperparameters as name=value.
        data: data set folder, in place of the file's data.path.

    Raises:
        ConfigError: a file or a section is invalid.
        HParamError: hyperparameters are invalid.
    """
    raw = read_yaml(file)
    for overlay in overlays:
        raw = merge(raw, read_yaml(overlay))
    hyperparameters = {**(raw.get("hyperparameters") or {}), **parse_settings(settings)}
    for name in ("weights", "backbone_weights"):
        value = hyperparameters.get(name)
        # A published checkpoint may be given by its name alone.
        if isinstance(value, str) and Path(value).exists():
            hyperparameters[name] = str(Path(value).resolve())
    section = raw.get("data") or {}
    if isinstance(section, Mapping):
        path = data or section.get("path")
        section = {**section, **({"path": str(Path(path).resolve())} if path else {})}
    return parse_config({**raw, "data": section, "hyperparameters": hyperparameters})


def parse_config(
    raw: Mapping[str, Any], hyperparameters: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """Validate a configuration.

    Args:
        raw: the configuration as YAML or Determined's master gives it.
        hyperparameters: the trial's own values, if a searcher chose them.

    Raises:
        ConfigError: a section is invalid.
        HParamError: hyperparameters are invalid.
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
            "optimizations.aggregation_frequency: gradients are not accumulated, so that each "
            "batch is one optimizer step; raise hyperparameters.global_batch_size instead"
        )
    if raw.get("records_per_epoch"):
        raise ConfigError(
            "records_per_epoch: an epoch is one pass over the training split; remove the setting"
        )
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
        single=searcher.get("name", "single") == "single",
        raw=raw,
    )


def _period(config: Mapping[str, Any], key: str) -> Period:
    value = config.get(key)
    if value is None:
        return Period()
    if isinstance(value, Mapping) and len(value) == 1:
        ((unit, count),) = value.items()
        is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        if unit in PERIOD_UNITS and is_count:
            return Period(count, unit)
    raise ConfigError(f"{key}: is {value!r}; write one of {PERIOD_UNITS}, such as {{epochs: 1}}")


def require_search_length(raw: Mapping[str, Any]) -> None:
    """Check that a search over epochs is as long as its trials, if the file gives both lengths.

    Raises:
        ConfigError: the search would stop trials before their end, or wait for epochs that never
            come.
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
    """A configuration's hyperparameters; one written as a constant search range is its value."""
    return {
        name: value["val"] if isinstance(value, Mapping) and value.get("type") == "const" else value
        for name, value in (raw.get("hyperparameters") or {}).items()
    }
