"""The checkpoints of a run without a cluster."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from cocodata.files import write_atomically


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint of a local run."""

    uuid: str
    batches: int
    metric: float | None


class LocalCheckpoints:
    """An index of the complete checkpoints of a local run, which also deletes old ones.

    Determined writes them to `<run>/checkpoints/determined/<uuid>`, but without a cluster it
    neither lists nor deletes them. A folder that is not in the index is incomplete.
    """

    def __init__(self, run: Path) -> None:
        self._index = run / "checkpoints.json"
        self._data_home = run / "checkpoints"

    @property
    def data_home(self) -> Path:
        """The value of XDG_DATA_HOME that makes Determined write here."""
        return self._data_home

    def folder(self, saved: SavedCheckpoint) -> Path:
        """Return a checkpoint's folder."""
        return self._data_home / "determined" / saved.uuid

    def all(self) -> list[SavedCheckpoint]:
        """Return the checkpoints, oldest first."""
        if not self._index.is_file():
            return []
        return [SavedCheckpoint(**entry) for entry in json.loads(self._index.read_text())]

    def newest(self) -> SavedCheckpoint | None:
        """Return the newest checkpoint, if there is one."""
        return self.all()[-1] if self.all() else None

    def best(self) -> SavedCheckpoint | None:
        """Return the checkpoint with the highest metric, or the newest if none has a metric."""
        evaluated = [saved for saved in self.all() if saved.metric is not None]
        return max(evaluated, key=lambda saved: saved.metric or 0.0) if evaluated else self.newest()

    def add(self, saved: SavedCheckpoint) -> None:
        """Add a complete checkpoint, then delete all but the two newest and the best.

        Two are kept so that the run can be resumed even if the newest is damaged. Checkpoints of
        the same or later batches are replaced: a resumed run has overtaken them.
        """
        entries = [*(old for old in self.all() if old.batches < saved.batches), saved]
        evaluated = [entry for entry in entries if entry.metric is not None]
        keep = entries[-2:]
        if evaluated:
            keep.append(max(evaluated, key=lambda entry: entry.metric or 0.0))
        entries = [entry for entry in entries if entry in keep]
        write_atomically(self._index, json.dumps([vars(entry) for entry in entries], indent=1))
        self.remove_unlisted()

    def remove_unlisted(self) -> None:
        """Delete the folders of checkpoints that are not in the index."""
        listed = {saved.uuid for saved in self.all()}
        storage = self._data_home / "determined"
        for folder in storage.iterdir() if storage.is_dir() else []:
            if folder.name not in listed:
                shutil.rmtree(folder)
