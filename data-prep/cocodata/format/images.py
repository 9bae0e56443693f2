"""What is wrong with an image file: from its header and end alone, or by decoding it.

JPEG headers are read here (ITU-T T.81, annex B) and not by a library for image sizes: those stop at
the frame header, so they accept a file that was cut off after it. Telling whether a file is
complete takes the position of the first scan, because the bytes of an end marker also occur in
metadata before it.
"""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_START_OF_SCAN = 0xDA
# SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC), which lie between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and the restart markers.

MAX_PIXELS = 2**29
"""Pixels of the largest image that is used: 1.6 GB decoded. Decoders count bytes in 31 bits."""

# Pillow has a limit of its own, of 179 million. This module is imported before any image is opened,
# so what the check accepts is also drawn and verified.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_HEAD = 65536
_TAIL = 4096

_OTHER_FORMATS = {
    b"\x89PNG": "a PNG file",
    b"GIF8": "a GIF file",
    b"RIFF": "a WebP file",
    b"BM": "a BMP file",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"<": "a text file (a web page instead of the image?)",
}


class ImageError(Exception):
    """An image file cannot be used; the message says why."""


class MissingImageError(ImageError):
    """The file does not exist."""


class UnreadableImageError(ImageError):
    """The file exists but the operating system cannot read it."""


class ImageFormatError(ImageError):
    """The file is not of an accepted format, or its headers make no sense."""


class TruncatedJpegError(ImageError):
    """The file ends too early."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than are decoded."""


class ImageSizeError(ImageError):
    """The image does not have the size in the annotations."""


class DecodingError(ImageError):
    """The headers are valid, but the image data cannot be decoded."""


def check_header(path: Path | str, size: tuple[int, int]) -> None:
    """Check that a file is a complete JPEG of a size, without decoding it.

    Args:
        path: the file.
        size: width and height in pixels that the annotations give.

    Raises:
        ImageError: it is not.
    """
    try:
        found = jpeg_size(path)
    except FileNotFoundError:
        raise MissingImageError("the file is missing") from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be read ({error})") from None
    if found != size:
        raise ImageSizeError(size_mismatch(found, size))
    _require_decodable(found)


def check_decoding(
    source: Path | bytes, size: tuple[int, int], *, formats: tuple[str, ...] | None = None
) -> None:
    """Check that an image has a size and decodes completely.

    Args:
        source: the file, or its content.
        size: width and height in pixels that the annotations give, before any EXIF rotation.
        formats: names that Pillow has for the formats to accept; None for every one it can read.

    Raises:
        ImageError: it does not.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except FileNotFoundError:
        raise MissingImageError("the file is missing") from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be read ({error})") from None
    if not content:
        raise TruncatedJpegError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as picture:
            if picture.size != size:
                raise ImageSizeError(size_mismatch(picture.size, size))
            _require_decodable(picture.size)
            picture.load()
    except UnidentifiedImageError:
        raise ImageFormatError(f"its {len(content)} bytes are not an image") from None
    except Image.DecompressionBombError:  # More than twice the limit.
        _require_decodable(size)
        raise ImageSizeError(f"far more pixels than {size[0]} x {size[1]}") from None
    except (OSError, SyntaxError, ValueError) as error:  # What Pillow's decoders raise.
        raise DecodingError(f"it cannot be decoded: {error}") from None


def _require_decodable(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageTooLargeError(
            f"{size[0]} x {size[1]} pixels; up to {MAX_PIXELS // 10**6} megapixels can be used"
        )


def size_mismatch(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Describe how an image's (width, height) differs from that in the annotations."""
    return f"{found[0]} x {found[1]} pixels, {expected[0]} x {expected[1]} in the annotations"


def jpeg_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of a JPEG file after checking that it has a start and an end.

    Only the headers and the last bytes are read. Entropy-coded data cannot contain an end marker,
    so one after the start of the first scan means that the file was not cut off. Bytes after it are
    harmless, and some cameras add them.

    Raises:
        ImageFormatError: it is something else.
        TruncatedJpegError: the end is missing.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - paths are strings where there are 118,000
        data = file.read(_HEAD)
        size = len(data)
        if size == _HEAD:
            size = file.seek(0, 2)
        if not data:
            raise TruncatedJpegError("the file is empty")
        if not data.startswith(_START):
            raise ImageFormatError(_format_of(data))
        try:
            width, height, scan = _read_headers(data)
        except IndexError:
            if size == len(data):
                raise TruncatedJpegError(f"ends within its headers, after {size} bytes") from None
            # Long metadata, such as an embedded profile or preview.
            file.seek(0)
            data = file.read()
            try:
                width, height, scan = _read_headers(data)
            except IndexError:
                raise TruncatedJpegError(f"ends within its headers, after {size} bytes") from None
        tail = max(scan, size - _TAIL)
        file.seek(tail)
        if _END not in file.read():
            file.seek(scan)
            if _END not in file.read():
                raise TruncatedJpegError(f"ends after {size} bytes without an end marker")
    if width == 0 or height == 0:
        raise ImageFormatError(f"its header says {width} x {height} pixels")
    return width, height


def _read_headers(data: bytes) -> tuple[int, int, int]:
    """Return width, height and the offset of the first scan; IndexError where the data ends."""
    width = height = -1
    position = 2
    while True:
        if data[position] != 0xFF:
            raise ImageFormatError(f"byte {position} should start a marker and does not")
        while data[position] == 0xFF:  # Any number of fill bytes may precede a marker.
            position += 1
        marker = data[position]
        position += 1
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == 0xD9:
            raise TruncatedJpegError("ends before any image data")
        length = data[position] << 8 | data[position + 1]
        if marker in _FRAMES:
            height = data[position + 3] << 8 | data[position + 4]
            width = data[position + 5] << 8 | data[position + 6]
        position += length
        if marker == _START_OF_SCAN:
            break
    if width < 0:
        raise ImageFormatError("no frame header before the image data")
    return width, height, position


def _format_of(data: bytes) -> str:
    for magic, name in _OTHER_FORMATS.items():
        if data.startswith(magic):
            return name
    if not data.strip(b"\0"):
        return "nothing but zero bytes"
    return f"starts with the bytes {data[:4].hex(' ')}; a JPEG starts with ff d8"
