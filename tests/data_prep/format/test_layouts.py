from pathlib import Path

import pytest

from cocodata import DatasetError, DatasetFolder, splits


def test_paths_of_a_data_set() -> None:
    folder = DatasetFolder(Path("/data/coco"))
    assert folder.manifest_file == Path("/data/coco/manifest.json")
    assert folder.annotation_file("val2017") == Path(
        "/data/coco/annotations/instances_val2017.json"
    )
    assert folder.image_folder("val2017") == Path("/data/coco/val2017")
    assert folder.image_path("val2017", "a/b.jpg") == "val2017/a/b.jpg"
    assert folder.file_name_of("val2017", "val2017/a/b.jpg") == "a/b.jpg"
    assert folder.file_name_of("val2017", "val2017x/b.jpg") is None


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("train2017/1.jpg", "train2017"),
        ("other/1.jpg", None),
        # Named like a split, but in another folder.
        ("other/train2017.jpg", None),
    ],
)
def test_split_of_a_path(path: str, split: str | None) -> None:
    assert DatasetFolder.split_of(path, ("train2017", "val2017")) == split


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("annotations/instances_val2017.json", True),
        ("annotations/captions_val2017.json", False),
        ("val2017/1.jpg", True),
        ("README.txt", False),
    ],
)
def test_files_of_an_archive_that_are_used(path: str, wanted: bool) -> None:
    assert DatasetFolder.is_wanted(path) is wanted


def test_compressed_annotation_file_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances_train2017.json.gz"
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"compressed\. Unpack it with `gunzip .*json\.gz`"):
        splits(tmp_path)
