"""The digests of a checkpoint's files, which are verified before every use.

A checkpoint is a folder that Determined's trainer writes (state_dict.pth, trial_state.pkl, ...),
plus three files of ours: detector.json describes how to rebuild the detector, numerics.json says
what the weights were computed with, and sha256.json lists the SHA-256 of every other file.
"""

import json
from pathlib import Path

from cocodata.files import file_digest, write_atomically

DIGESTS = "sha256.json"
DETECTOR = "detector.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the file and says what to do."""


class CheckpointMissingError(CheckpointError):
    """The storage answers, and has no such checkpoint."""


class StorageError(RuntimeError):
    """The storage of checkpoints cannot be read, so that nothing is known of a checkpoint in it."""


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of every file in a checkpoint to its sha256.json."""
    digests = {
        file.relative_to(folder).as_posix(): file_digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != DIGESTS
    }
    write_atomically(folder / DIGESTS, json.dumps(digests, indent=1))


def verify_digests(folder: Path) -> None:
    """Verify the files that are listed in a checkpoint's sha256.json.

    Raises:
        CheckpointError: The folder or its digests are missing, or a file is missing or changed.
    """
    listing = folder / DIGESTS
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder; check the path")
    if not listing.is_file():
        raise CheckpointError(
            f"{listing}: missing, so the checkpoint is incomplete; use an earlier one"
        )
    try:
        digests: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{listing}: damaged ({error}); use an earlier checkpoint") from error
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing from the checkpoint; use an earlier one")
        if file_digest(file) != digest:
            raise CheckpointError(
                f"{file}: SHA-256 differs from when it was saved, so the file is damaged; use an "
                "earlier checkpoint"
            )
