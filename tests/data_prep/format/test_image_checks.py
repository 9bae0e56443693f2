import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cocodata.format.images import (
    DecodingError,
    ImageError,
    ImageFormatError,
    ImageSizeError,
    MissingImageError,
    TruncatedJpegError,
    UnreadableImageError,
    check_decoding,
    check_header,
    jpeg_size,
)


def _jpeg(mode: str = "RGB", width: int = 97, height: int = 61, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(_jpeg(), id="baseline"),
        pytest.param(_jpeg(progressive=True), id="progressive"),
        pytest.param(_jpeg("L"), id="grayscale"),
        pytest.param(_jpeg("CMYK"), id="cmyk"),
        pytest.param(_jpeg(restart_marker_rows=1), id="restart markers"),
        pytest.param(_jpeg(comment=b"\xff\xd9 no end"), id="an end marker in a comment"),
        # More metadata than is read at first: three segments of 60,000 bytes.
        pytest.param(_jpeg(icc_profile=bytes(180_000)), id="long profile"),
        pytest.param(_jpeg() + b"\0" * 10_000, id="bytes after the end"),
        pytest.param(_jpeg().replace(b"\xff\xdb", b"\xff\xff\xdb", 1), id="fill bytes"),
    ],
)
def test_size_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    assert jpeg_size(path) == (97, 61)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"icc_profile": bytes(180_000)}])
def test_every_truncation_is_found(tmp_path: Path, options: dict[str, Any]) -> None:
    content = _jpeg(**options)
    path = tmp_path / "image.jpg"
    cuts = np.random.default_rng(0).integers(2, len(content) - 1, 300).tolist()
    for cut in [0, 2, 3, 4, *cuts, len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(TruncatedJpegError):
            jpeg_size(path)
        # As a download leaves it whose file was allocated in full beforehand.
        if cut > 4:
            path.write_bytes(content[:cut].ljust(len(content), b"\0"))
            with pytest.raises((TruncatedJpegError, ImageFormatError)):
                jpeg_size(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n", "a PNG file"),
        (b"<!DOCTYPE html>", "a text file"),
        (bytes(500), "nothing but zero bytes"),
        (b"hello", "starts with the bytes 68 65 6c 6c"),
        (b"\xff\xd8hello", "byte 2 should start a marker"),
    ],
)
def test_other_content_is_identified(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageFormatError, match=message):
        jpeg_size(path)


@pytest.mark.parametrize("check", [check_header, check_decoding])
@pytest.mark.parametrize(
    ("content", "size", "error"),
    [
        (_jpeg(), (61, 97), ImageSizeError),
        (b"", (97, 61), TruncatedJpegError),
        (b"hello", (97, 61), ImageFormatError),
    ],
)
def test_both_checks_report_the_same_error(
    tmp_path: Path, check: Any, content: bytes, size: tuple[int, int], error: type[ImageError]
) -> None:
    path = tmp_path / "image.jpg"
    with pytest.raises(MissingImageError):
        check(path, size)
    path.write_bytes(_jpeg())
    check(path, (97, 61))
    path.write_bytes(content)
    with pytest.raises(error):
        check(path, size)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnreadableImageError):
        check(path, size)


def test_size_is_the_stored_one_whatever_exif_rotation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate by 90 degrees to display.
    path = tmp_path / "image.jpg"
    path.write_bytes(_jpeg(exif=exif))
    check_header(path, (97, 61))
    check_decoding(path, (97, 61))


def test_decoding_finds_truncation_and_other_formats() -> None:
    with pytest.raises(DecodingError, match="truncated"):
        check_decoding(_jpeg()[:-200], (97, 61))
    file = io.BytesIO()
    Image.new("RGB", (5, 7)).save(file, "PNG")
    check_decoding(file.getvalue(), (5, 7))
    with pytest.raises(ImageFormatError):
        check_decoding(file.getvalue(), (5, 7), formats=("JPEG",))
