"""Digests detect damaged files; the index of a local run keeps what a resume needs."""

import shutil
from pathlib import Path

import pytest
import torch

from experiments.checkpoints.contents import CheckpointError, verify_digests, write_digests
from experiments.checkpoints.detectors import load_detector
from experiments.checkpoints.local import LocalCheckpoints, SavedCheckpoint
from experiments.checkpoints.space import require_space


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "code").mkdir(parents=True)
    (checkpoint / "state_dict.pth").write_bytes(bytes(range(256)) * 100)
    (checkpoint / "trial_state.pkl").write_bytes(b"state")
    (checkpoint / "code" / "train.py").write_text("pass")
    write_digests(checkpoint)
    return checkpoint


def test_an_intact_checkpoint_passes_also_with_additional_files(folder: Path) -> None:
    verify_digests(folder)
    (folder / "metadata.json").write_text("{}")  # Determined adds it last
    verify_digests(folder)


def test_one_flipped_bit_is_detected(folder: Path) -> None:
    file = folder / "state_dict.pth"
    content = bytearray(file.read_bytes())
    content[12_345] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state_dict\.pth: SHA-256 differs"):
        verify_digests(folder)


@pytest.mark.parametrize("name", ["state_dict.pth", "trial_state.pkl", "code/train.py"])
def test_a_truncated_or_missing_file_is_reported(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=name):
        verify_digests(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        verify_digests(folder)


def test_missing_or_damaged_digests_and_folders_are_reported(folder: Path, tmp_path: Path) -> None:
    (folder / "sha256.json").write_text('{"state_')
    with pytest.raises(CheckpointError, match=r"sha256\.json: damaged"):
        verify_digests(folder)
    (folder / "sha256.json").unlink()
    with pytest.raises(CheckpointError, match="missing, so the checkpoint is incomplete"):
        verify_digests(folder)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        verify_digests(tmp_path / "elsewhere")


def test_a_weights_file_needs_its_models_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--model"):
        load_detector(tmp_path / "d0.pth")


def test_the_index_keeps_the_two_newest_and_the_best(tmp_path: Path) -> None:
    index = LocalCheckpoints(tmp_path)
    assert index.newest() is None
    assert index.best() is None
    metrics = [0.1, 0.5, 0.3, None, 0.2]
    for number, metric in enumerate(metrics):
        saved = SavedCheckpoint(f"uuid-{number}", 10 * (number + 1), metric)
        index.folder(saved).mkdir(parents=True)
        index.add(saved)
    assert [saved.uuid for saved in index.all()] == ["uuid-1", "uuid-3", "uuid-4"]
    assert {path.name for path in (index.data_home / "determined").iterdir()} == {
        "uuid-1",
        "uuid-3",
        "uuid-4",
    }
    newest, best = index.newest(), index.best()
    assert newest is not None
    assert newest.uuid == "uuid-4"
    assert best is not None
    assert best.uuid == "uuid-1"


def test_an_incomplete_checkpoint_is_deleted(tmp_path: Path) -> None:
    index = LocalCheckpoints(tmp_path)
    complete = SavedCheckpoint("complete", 10, None)
    index.folder(complete).mkdir(parents=True)
    index.add(complete)
    incomplete = tmp_path / "checkpoints" / "determined" / "incomplete"
    incomplete.mkdir()
    index.remove_unlisted()
    assert not incomplete.exists()
    assert index.folder(complete).is_dir()


def test_a_resumed_run_replaces_later_checkpoints(tmp_path: Path) -> None:
    index = LocalCheckpoints(tmp_path)
    for number in (10, 20):
        index.add(SavedCheckpoint(f"first-{number}", number, None))
    index.add(SavedCheckpoint("second-20", 20, None))
    assert [saved.uuid for saved in index.all()] == ["first-10", "second-20"]


def test_too_little_space_is_reported_before_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"model": [{"weight": torch.zeros(1000, 1000)}], "more": (torch.zeros(10),)}

    def set_free_space(amount: float) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=int(amount))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    set_free_space(8e6)
    require_space(tmp_path, content)
    set_free_space(5e6)
    with pytest.raises(CheckpointError, match="5 MB free, and a checkpoint needs 6 MB"):
        require_space(tmp_path, content)
    require_space(None, content)  # an object store
