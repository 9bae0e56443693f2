import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cocodata import DatasetError, load_split
from cocodata.__main__ import main
from cocodata.checks.verify import verify_dataset
from cocodata.format.annotations import read_annotations
from cocodata.format.manifest import read_manifest
from cocodata.mini import mini
from cocodata.mini.mini import generate_mini_coco


def _version(folder: Path) -> str:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest.version


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate_mini_coco(tmp_path / name, num_train=12, num_val=4, seed=seed)
    assert _version(tmp_path / "a") == _version(tmp_path / "b")
    assert _version(tmp_path / "a") != _version(tmp_path / "c")


def test_it_is_generated_once(tmp_path: Path) -> None:
    out = tmp_path / "mini"
    assert generate_mini_coco(out, num_train=8, num_val=4)
    assert not generate_mini_coco(out, num_train=8, num_val=4)
    # Another one, and a damaged one, are replaced.
    assert generate_mini_coco(out, num_train=9, num_val=4)
    next((out / "train2017").iterdir()).unlink()
    assert generate_mini_coco(out, num_train=9, num_val=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


def test_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "mini"
    monkeypatch.setattr(mini, "write_manifest", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_mini_coco(out, num_train=8, num_val=4)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(DatasetError, match="is left unchanged"):
        generate_mini_coco(tmp_path, num_train=8, num_val=4)
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"


def test_it_is_valid_and_varied(generated: Path) -> None:
    verification = verify_dataset(generated)
    assert verification.report.problems == []
    assert verification.manifest is not None
    assert verification.manifest.verified is not None
    split = load_split(generated, "train2017")
    annotations = read_annotations(split.annotation_file, split.image_dir)
    per_image = np.diff(split.box_offsets)
    assert per_image.min() == 0
    assert per_image.max() >= 3
    assert annotations.ignored.any()
    assert set(split.labels.tolist()) == set(split.categories.ids)
    assert max(split.categories.ids) > len(split.categories)
    assert len(np.unique(split.sizes, axis=0)) > 100
    modes = set()
    for name in split.file_names:
        with Image.open(split.image_dir / name) as picture:
            modes.add((picture.format, picture.mode))
    assert modes == {("JPEG", "RGB"), ("JPEG", "L")}


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cocodata", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    out = str(tmp_path / "mini")
    assert run("mini", out, "--train", "8", "--val", "4")[:2] == (
        0,
        f"{out}: generated, 8 + 4 images\n",
    )
    assert run("check", out)[:2] == (0, f"{out}: agrees with its verified manifest\n")
    assert run("manifest", out, "--name", "mine")[0] == 0
    (tmp_path / "mini" / "train2017" / "000000001000.jpg").unlink()
    status, _, error = run("check", out)
    assert status == 1
    assert error.startswith(f"error: {out}: 1 problem found")
    status, _, error = run("verify", str(tmp_path / "nowhere"))
    assert status == 1
    assert "the folder does not exist" in error
