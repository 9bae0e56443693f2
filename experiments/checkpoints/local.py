"""The checkpoints of a run without a cluster: an index of the complete ones, and what is kept."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from cocodata.files import write_atomically


@dataclass(frozen=True)
class SavedCheckpoint:
    """One finished checkpoint of a local run."""

    uuid: str
    batches: int
    metric: float | None


class LocalCheckpoints:
    """The checkpoints of a run without a cluster: which are whole, which is the newest, the best.

    Determined writes them below `<run>/checkpoints/determined/<uuid>`; nothing off a cluster keeps
    count of them or deletes old ones, so this index does. A folder that the index does not name
    was cut off while it was written.
    """

    def __init__(self, run: Path) -> None:
        self._index = run / "checkpoints.json"
        self._data_home = run / "checkpoints"

    @property
    def data_home(self) -> Path:
        """What XDG_DATA_HOME must be for Determined to write here."""
        return self._data_home

    def folder(self, saved: SavedCheckpoint) -> Path:
        """Where a checkpoint lies."""
        return self._data_home / "determined" / saved.uuid

    def all(self) -> list[SavedCheckpoint]:
        """The checkpoints, oldest first."""
        if not self._index.is_file():
            return []
        return [SavedCheckpoint(**entry) for entry in json.loads(self._index.read_text())]

    def newest(self) -> SavedCheckpoint | None:
        """The newest whole checkpoint."""
        return self.all()[-1] if self.all() else None

    def best(self) -> SavedCheckpoint | None:
        """The checkpoint of the highest validation metric; the newest if none was validated."""
        rated = [saved for saved in self.all() if saved.metric is not None]
        return max(rated, key=lambda saved: saved.metric or 0.0) if rated else self.newest()

    def add(self, saved: SavedCheckpoint) -> None:
        """Take a finished checkpoint in, then delete all but the two newest and the best.

        The two newest, so that damage to one does not lose the run.
        """
        entries = [*(old for old in self.all() if old.batches < saved.batches), saved]
        rated = [entry for entry in entries if entry.metric is not None]
        keep = entries[-2:]
        if rated:
            keep.append(max(rated, key=lambda entry: entry.metric or 0.0))
        entries = [entry for entry in entries if entry in keep]
        write_atomically(self._index, json.dumps([vars(entry) for entry in entries], indent=1))
        self.remove_unlisted()

    def remove_unlisted(self) -> None:
        """Delete the folders of checkpoints that the index does not name."""
        named = {saved.uuid for saved in self.all()}
        storage = self._data_home / "determined"
        for folder in storage.iterdir() if storage.is_dir() else []:
            if folder.name not in named:
                shutil.rmtree(folder)
