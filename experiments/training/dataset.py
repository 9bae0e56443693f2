"""The data set of an experiment: checked once per machine, identical on every rank."""

import socket

import numpy as np
from determined import core

from cocodata import DatasetError, Split, load_split, load_validated, splits
from cocodata.format.manifest import read_manifest
from experiments.settings.experiment import ExperimentConfig


def load_splits(
    config: ExperimentConfig, distributed: core.DistributedContext
) -> tuple[Split, Split]:
    """The training and validation split, checked before training.

    The first rank of each machine checks the files; the other ranks use its result.

    Raises:
        DatasetError: lists every problem found, or says how machines differ.
    """
    found = splits(config.data)
    names = (config.train_split or found[0], config.val_split or found[1])
    loaded: list[Split] | None = None
    failure: str | None = None
    version: str | None = None
    if distributed.get_local_rank() == 0:
        try:
            version = _required_version(config)
            validated = load_validated(config.data, names, strict=config.hparams.strict)
            loaded = list(validated.splits)
            for note in validated.report.notes:
                print(note)
            for name, count in validated.left_out.items():
                if count:
                    print(f"{name}: {count} unusable images are skipped (strict: false)")
        except DatasetError as error:
            failure = str(error)
    # Every rank learns of a failure on any machine, so that all stop with the message.
    failures = [each for each in distributed.allgather(failure) if each is not None]
    if failures:
        raise DatasetError(failures[0])
    versions = {each for each in distributed.allgather(version) if each is not None}
    if len(versions) > 1:
        raise DatasetError(
            f"the machines have {len(versions)} versions of {config.data}: {sorted(versions)}; "
            "sync one version to all of them (make coco-sync)"
        )
    kept = distributed.broadcast_local(
        [split.image_ids for split in loaded] if loaded is not None else None
    )
    if loaded is None:
        found_splits = [
            load_split(config.data, name, strict=config.hparams.strict) for name in names
        ]
        loaded = [
            split.select(np.isin(split.image_ids, ids))
            for split, ids in zip(found_splits, kept, strict=True)
        ]
    _require_agreement(loaded, distributed)
    if distributed.get_rank() == 0 and version is not None:
        print(f"data set {config.data}: version {version}", flush=True)
    train, val = loaded
    if config.hparams.val_skip > 1:
        val = val.select(np.arange(len(val)) % config.hparams.val_skip == 0)
    return train, val


def _required_version(config: ExperimentConfig) -> str | None:
    """The version in this machine's manifest; None without a manifest.

    Raises:
        DatasetError: the experiment names another version.
    """
    manifest = read_manifest(config.data)
    version = manifest.version if manifest is not None else None
    if config.data_version is not None and version != config.data_version:
        raise DatasetError(
            f"{config.data} on host {socket.gethostname()} has version {version or 'none'}, and "
            f"the experiment needs {config.data_version}: sync the data set to this host "
            "(make coco-sync), or submit the experiment again to use the version there"
        )
    return version


def _require_agreement(loaded: list[Split], distributed: core.DistributedContext) -> None:
    """Check that all machines have the same images; otherwise ranks would mix two data sets."""
    mine = tuple((split.name, len(split), int(split.image_ids.sum())) for split in loaded)
    for rank, theirs in enumerate(distributed.allgather(mine)):
        if theirs != mine:
            raise DatasetError(
                f"rank {rank} found {theirs} where rank {distributed.get_rank()} found {mine} "
                "(split, images, sum of image ids): the machines have different data sets; sync "
                "one version to all of them"
            )
