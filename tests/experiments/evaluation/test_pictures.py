"""The pictures that predict.py reads, and where it writes what it draws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from experiments import predict
from experiments.evaluation.pictures import (
    find_pictures,
    open_picture,
    output_names,
    require_other_folder,
    to_rgb,
)
from tests.experiments.evaluation.test_commands import run
from tests.experiments.evaluation.test_loop import tiny_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(tiny_detector(3).state_dict(), file)
    return file


def save(file: Path, shade: int = 100, size: tuple[int, int] = (60, 40)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(file)
    return file


def arguments(weights: Path, images: Path | str, out: Path) -> tuple[object, ...]:
    detector = ("--checkpoint", weights, "--model", "tiny", "--num-classes", 3)
    return (*detector, "--images", images, "--out", out, "--device", "cpu", "--threads", 1)


def test_pictures_of_one_name_in_several_folders_are_kept_apart(
    tmp_path: Path, weights: Path
) -> None:
    for index in range(4):
        save(tmp_path / f"cams/{index}/day/x.png", 50 * index)
    save(tmp_path / "cams/0/day/x.jpg", 250)
    for images in (tmp_path / "cams", tmp_path / "cams/*/day/x.*", tmp_path / "cams/**/x.*"):
        out = tmp_path / "cams" / "drawn"  # in the folder that is read
        result = run(predict, *arguments(weights, images, out), "--score", 1)
        if "**" in str(images):  # which matches the results of the earlier runs
            assert result.exit_code == 1
            continue
        assert result.exit_code == 0, result.output
        listing = json.loads((out / "detections.json").read_text())
        drawn = {each["file"]: each["drawn"] for each in listing}
        assert len(drawn) == 5
        for file, name in drawn.items():
            shade = np.asarray(Image.open(out / name)).mean()
            assert abs(shade - np.asarray(Image.open(file)).mean()) < 2
        assert (out / "3/day/x.jpg").is_file()


def test_names_do_not_collide() -> None:
    files = [Path(f"/a/{name}") for name in ("x.jpg", "x.png", "x.png.jpg", "x.png.bmp", "b/x.jpg")]
    names = [name.as_posix() for name in output_names(files)]
    assert names[:2] == ["x.jpg", "x.png.jpg"]
    assert names[4] == "b/x.jpg"
    assert len(set(names)) == 5
    assert output_names([Path("here.png")]) == [Path("here.jpg")]


@pytest.mark.parametrize("name", ["holiday.jpg", "holiday.png"])
def test_predict_never_writes_over_what_it_reads(tmp_path: Path, weights: Path, name: str) -> None:
    picture = save(tmp_path / "photos" / name)
    other = save(tmp_path / "photos" / "sub" / "b.jpg")
    before = picture.read_bytes(), other.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for out in (tmp_path / "photos", tmp_path / "link"):
        for images in (tmp_path / "photos", picture, tmp_path / "photos" / "*"):
            # Refused before any work: there is no such checkpoint.
            result = run(predict, *arguments(tmp_path / "none.pth", images, out))
            assert result.exit_code == 1
            assert "choose another with --out" in " ".join(result.stderr.split())
    assert (picture.read_bytes(), other.read_bytes()) == before
    assert {each.name for each in (tmp_path / "photos").iterdir()} == {name, "sub"}


def test_a_picture_that_links_into_the_output_folder_is_refused(tmp_path: Path) -> None:
    target = save(tmp_path / "out" / "x.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").symlink_to(target)
    files = [tmp_path / "in" / "x.jpg"]
    with pytest.raises(ValueError, match=r"written over, such as .*out/x.jpg"):
        require_other_folder(files, output_names(files), tmp_path / "out")


def test_folders_with_other_files_and_folders(tmp_path: Path) -> None:
    expected = [save(tmp_path / name) for name in ("a.JPG", "b/c.png", "b/d/e.webp")]
    others = ("notes.txt", "._a.jpg", ".DS_Store", "b/clip.mpg", "b/list.pdf", "b/labels.h5")
    for name in others:
        (tmp_path / name).write_text("other")
    save(tmp_path / ".thumbnails/t.jpg")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "a.jpg")
    found = find_pictures(str(tmp_path), leave_out=tmp_path / "out")
    assert (found.files, found.others) == (expected, len(others))
    (tmp_path / "b" / "loop").unlink()  # which a pattern would follow
    assert find_pictures(str(tmp_path / "b" / "d*")).files == [expected[2]]
    assert find_pictures(str(tmp_path / "**" / "*.png")).files == [expected[1]]
    assert find_pictures(str(tmp_path / "notes.txt")).files == [tmp_path / "notes.txt"]


def dali(file: Path) -> np.ndarray:
    """Decode a file as the input pipeline does."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decode() -> object:
        encoded, _ = fn.readers.file(files=[str(file)])
        return fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)

    return np.asarray(decode().run()[0].at(0))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_pictures_are_shown_in_their_own_range(tmp_path: Path, extension: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = tmp_path / f"all.{extension}"
    Image.fromarray(values).save(file)
    image = open_picture(file)
    assert np.array_equal(np.asarray(image), dali(file))
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    assert np.array_equal(np.asarray(open_picture(file))[..., 0], grey)
    for mode in ("I", "F"):
        wide = to_rgb(Image.fromarray(grey.astype(np.int32) * 257))
        assert np.array_equal(np.asarray(wide)[..., 0], grey), mode
    assert to_rgb(Image.fromarray(np.full((2, 2), 0.5, np.float32))).getpixel((0, 0))[0] == 128


@pytest.mark.parametrize(
    "values",
    [np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32), np.full((2, 2), np.nan)],
)
def test_other_ranges_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    file = tmp_path / "x.tif"
    Image.fromarray(values.astype(np.float32) if values.dtype.kind == "f" else values).save(file)
    with pytest.raises(OSError, match=r"x.tif: not a readable picture \(32-bit values from"):
        open_picture(file)


def test_predict_draws_16_bit_grey_like_8_bit(tmp_path: Path, weights: Path) -> None:
    grey = np.linspace(30, 220, 60 * 40).astype(np.uint8).reshape(40, 60)
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(grey).save(folder / "grey8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png")
    result = run(predict, *arguments(weights, folder, tmp_path / "out"), "--score", 0.01)
    assert result.exit_code == 0, result.output
    drawn = [np.asarray(Image.open(tmp_path / "out" / f"grey{bits}.jpg")) for bits in (8, 16)]
    assert np.array_equal(*drawn)  # the boxes too: the detector got the same picture


def test_broken_pictures_only(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "in"
    content = save(folder / "x.png").read_bytes()
    (folder / "x.png").write_bytes(content[:60])
    (folder / "y.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    (folder / "z.jpg").write_bytes(b"")
    result = run(predict, *arguments(weights, folder, tmp_path / "out"))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    message = " ".join(result.stderr.split())
    for name in ("x.png", "y.tif", "z.jpg"):
        assert f"{name}: not a readable picture" in message
