"""Annotation files as trees: JSON, also with what tools in the field add to it.

COCO's train2017 file is 450 MB, most of it segmentation polygons, which box detection never uses.
They are cut out before parsing, which makes reading three times as fast and keeps it from
taking 5 GB of memory in every process.

A file that is not strict JSON is read in a second, slower way if only one reading is possible:
gzip, byte order marks, UTF-16 and UTF-32, NaN, commas after the last entry.
"""

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import orjson

from cocodata.errors import DatasetError

_LIST_VALUE = re.compile(rb"\s*:\s*\[")

# Strings are matched first, so that a comma inside one is never taken for a separator.
_LAST_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])')

_GZIP = b"\x1f\x8b"

_OTHER_CONTENT = {
    b"PK\x03\x04": "a zip archive. Unpack it",
    b"version https://git-lfs": "the pointer of Git LFS instead of the file. Run `git lfs pull`",
    b"<?xml": "XML. Convert the annotations to COCO's format",
    b"<": "a web page or XML. Download the annotations again, or convert them to COCO's format",
}


def parse(path: Path, content: bytes) -> Any:
    """Return the tree of a JSON file without its polygons.

    Integers of more than 64 bits become rounded floats; `parse_exactly` keeps them.

    Raises:
        DatasetError: it is not JSON; the message says what it is instead.
    """
    try:
        return orjson.loads(without_polygons(content))
    except orjson.JSONDecodeError:
        return parse_exactly(path, content)


def parse_exactly(path: Path, content: bytes) -> Any:
    """Return the tree of a JSON file in a slower way, which accepts more and keeps all digits.

    Raises:
        DatasetError: as `parse`.
    """
    text = _decode(path, content)
    try:
        return _loads(without_polygons(text.encode()).decode())
    except (ValueError, RecursionError):
        pass
    try:  # Again with the polygons, so that the position in the message is that in the file.
        return _loads(text)
    except RecursionError:
        raise DatasetError(f"{path}: not COCO: lists within lists without an end") from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise DatasetError(
                f"{path}: not JSON: it ends in the middle, after {len(content):,} bytes. Was it "
                "downloaded or copied only partly? Get it again"
            ) from None
        near = text[max(0, error.pos - 20) : error.pos + 20]
        raise DatasetError(
            f"{path}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}, near "
            f"{near!r}. Correct it there, or export the annotations again"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON ({error})") from None


def without_polygons(content: bytes) -> bytes:
    """Return the JSON text with every `"segmentation": [...]` replaced by `"segmentation":0`.

    A list of polygons contains only numbers and brackets, so it ends at the last bracket before the
    next quotation mark (of the next key) or brace (of the annotation's end). Run-length encoded
    masks are objects; they are few and stay.
    """
    key = b'"segmentation"'
    pieces: list[bytes] = []
    copied = position = 0
    while (found := content.find(key, position)) >= 0:
        position = found + len(key)
        value = _LIST_VALUE.match(content, position)
        if value is None:
            continue
        start = value.end() - 1
        quote = content.find(b'"', start)
        brace = content.find(b"}", start, quote if quote >= 0 else len(content))
        end = content.rfind(b"]", start, brace if brace >= 0 else quote) + 1
        if end > start:
            pieces += (content[copied:start], b"0")
            copied = position = end
    pieces.append(content[copied:])
    return b"".join(pieces)


def _decode(path: Path, content: bytes) -> str:
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(
                f"{path}: not JSON: compressed with gzip, and damaged ({error}). Get it again"
            ) from None
    if not content.strip():
        raise DatasetError(f"{path}: not JSON: the file is empty. Get it again")
    for start, meaning in _OTHER_CONTENT.items():
        if content.lstrip().startswith(start):
            raise DatasetError(f"{path}: not JSON, but {meaning}")
    if not content.strip(b"\0"):
        raise DatasetError(f"{path}: not JSON: nothing but zero bytes. Get it again")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        near = content[max(0, error.start - 20) : error.start + 20]
        raise DatasetError(
            f"{path}: not JSON in {encoding.removesuffix('-sig').upper()}: {error.reason} at byte "
            f"{error.start}, near {near!r}. Save it with the encoding UTF-8"
        ) from None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if (repaired := _LAST_COMMA.sub(r"\1", text)) != text:
            try:
                return json.loads(repaired)
            except json.JSONDecodeError:
                pass
        raise
