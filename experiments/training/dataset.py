"""The data set of an experiment: checked once per machine, identical on every rank."""

import socket
from collections.abc import Sequence

import numpy as np
from determined import core

from cocodata import (
    Categories,
    DatasetError,
    Split,
    load_split,
    load_validated,
    share_labels,
    splits,
)
from cocodata.format.manifest import read_manifest
from experiments.settings.experiment import ExperimentConfig


def load_splits(
    config: ExperimentConfig,
    distributed: core.DistributedContext,
    trained: Categories | None = None,
    *,
    resumes: bool = False,
) -> tuple[Split, Split]:
    """The training and validation split, checked before training.

    The first rank of each machine checks the files; the other ranks use its result.

    Args:
        config: The experiment.
        distributed: The ranks.
        trained: The classes of the checkpoint that the run starts from, which give the labels; None
            for none.
        resumes: Whether the run continues that checkpoint's; else its weights may be for other
            classes, which is only noted.

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
            loaded = _labelled(validated.splits, trained, resumes=resumes)
            for note in (*validated.report.notes, *_notes_on_checkpoint(loaded, trained)):
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
        shared = [share_labels(found_splits[0], split) for split in found_splits]
        loaded = [
            split.select(np.isin(split.image_ids, ids))
            for split, ids in zip(_labelled(shared, trained, resumes=resumes), kept, strict=True)
        ]
    _require_agreement(loaded, distributed)
    if distributed.get_rank() == 0 and version is not None:
        print(f"data set {config.data}: version {version}", flush=True)
    train, val = loaded
    if config.hparams.val_skip > 1:
        val = val.select(np.arange(len(val)) % config.hparams.val_skip == 0)
    return train, val


def _labelled(loaded: Sequence[Split], trained: Categories | None, *, resumes: bool) -> list[Split]:
    """Return the splits with the labels of a checkpoint's classes, if it has the same ones."""
    if trained is None:
        return list(loaded)
    try:
        labelled = [split.labelled_as(trained, "the checkpoint") for split in loaded]
    except DatasetError:
        if resumes:
            raise
        return list(loaded)
    # A new run need not keep classes that its data does not have.
    same = resumes or len(labelled[0].categories) == len(trained)
    return labelled if same else list(loaded)


def _notes_on_checkpoint(loaded: Sequence[Split], trained: Categories | None) -> list[str]:
    """Say how the classes of a checkpoint and those of the data differ."""
    if trained is None or loaded[0].categories == trained:
        return []
    if loaded[0].categories.of_detector == trained:
        return ["the checkpoint's classes are matched by name to the data's: ids or number differ"]
    return ["the checkpoint's classes are not those of the data: only its weights are used"]


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
