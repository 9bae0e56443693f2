"""What can be said of a JPEG file without decoding it (ITU-T T.81, annex B)."""

from pathlib import Path

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_START_OF_SCAN = 0xDA
# SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC), which lie between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and the restart markers.

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


class JpegError(Exception):
    """The file is no complete JPEG; the message says what it is instead."""


class NotJpegError(JpegError):
    """The file does not start as a JPEG does, or its headers make no sense."""


class TruncatedJpegError(JpegError):
    """The file ends too early."""


def jpeg_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of a JPEG file after checking that it starts and ends as one.

    Only the headers and the last bytes are read. Entropy-coded data cannot hold an end marker, so
    one after the first scan means that the file was not cut short; bytes after it are no harm, and
    some cameras add them.

    Raises:
        NotJpegError: it is something else.
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
            raise NotJpegError(_what_it_is(data))
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
        raise NotJpegError(f"its header says {width} x {height} pixels")
    return width, height


def _read_headers(data: bytes) -> tuple[int, int, int]:
    """Return width, height and the offset of the first scan; IndexError where the data ends."""
    width = height = -1
    position = 2
    while True:
        if data[position] != 0xFF:
            raise NotJpegError(f"byte {position} should start a marker and does not")
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
        raise NotJpegError("no frame header before the image data")
    return width, height, position


def _what_it_is(data: bytes) -> str:
    for magic, name in _OTHER_FORMATS.items():
        if data.startswith(magic):
            return name
    if not data.strip(b"\0"):
        return "nothing but zero bytes"
    return f"starts with the bytes {data[:4].hex(' ')}, a JPEG with ff d8"
