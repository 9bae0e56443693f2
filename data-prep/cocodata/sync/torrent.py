"""Version 2 torrents: files, their pieces and their SHA-256 (BEP 3, BEP 52).

Sent to hosts: nothing but the standard library of Python 3.10.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 16384
"""Bytes of a leaf of the hash tree."""


def bencode(value: Any) -> bytes:
    """Encode integers, strings, lists and dictionaries in BitTorrent's format."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    items = {key.encode() if isinstance(key, str) else key: each for key, each in value.items()}
    return b"d" + b"".join(bencode(key) + bencode(items[key]) for key in sorted(items)) + b"e"


def bdecode(data: bytes) -> Any:
    """Decode bencoded data; keys and strings are returned as bytes."""

    def value(at: int) -> tuple[Any, int]:
        kind = data[at : at + 1]
        if kind == b"i":
            end = data.index(b"e", at)
            return int(data[at + 1 : end]), end + 1
        if kind in (b"l", b"d"):
            items, at = [], at + 1
            while data[at : at + 1] != b"e":
                item, at = value(at)
                items.append(item)
            return (
                items if kind == b"l" else dict(zip(items[::2], items[1::2], strict=True))
            ), at + 1
        colon = data.index(b":", at)
        end = colon + 1 + int(data[at:colon])
        return data[colon + 1 : end], end

    return value(0)[0]


def merkle_root(hashes: list[bytes], width: int, padding: bytes) -> bytes:
    """Return the root of a hash tree whose leaves are padded to `width`, a power of two."""
    hashes = hashes + [padding] * (width - len(hashes))
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=True)
        hashes = [hashlib.sha256(left + right).digest() for left, right in pairs]
    return hashes[0]


def piece_hash(data: bytes | memoryview, width: int) -> bytes:
    """Return the hash of a piece of a file: the root of the tree of its blocks' SHA-256."""
    view = memoryview(data)
    leaves = [hashlib.sha256(view[at : at + BLOCK]).digest() for at in range(0, len(view), BLOCK)]
    return merkle_root(leaves, width, bytes(32))


def file_piece_hashes(
    path: Path, piece_length: int, advance: Callable[[int], None] = lambda _: None
) -> list[bytes]:
    """Return the hash of each piece of a file, computed on all cores."""
    size = path.stat().st_size

    def one(start: int) -> bytes:
        data = os.pread(number, piece_length, start)
        advance(len(data))
        return piece_hash(data, piece_length // BLOCK)

    number = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(one, range(0, size, piece_length)))
    finally:
        os.close(number)


@dataclass(frozen=True)
class FileHashes:
    """A file of a torrent.

    Attributes:
        size: bytes of the file.
        root: the root of its hash tree.
        pieces: the hashes of its pieces; a file of one piece has its root alone.
    """

    size: int
    root: bytes
    pieces: tuple[bytes, ...]


class Torrent:
    """A torrent: its name, and the sizes and piece hashes of its files."""

    def __init__(self, data: bytes) -> None:
        """Read a .torrent file with a version 2 info dictionary and no folders."""
        self.data = data
        tree = bdecode(data)
        info = tree[b"info"]
        self.piece_length: int = info[b"piece length"]
        self.name: str = info[b"name"].decode()
        self.files: dict[str, FileHashes] = {}
        for name, content in sorted(info[b"file tree"].items()):
            size, root = content[b""][b"length"], content[b""][b"pieces root"]
            layer: bytes = tree.get(b"piece layers", {}).get(root, root)
            pieces = tuple(layer[at : at + 32] for at in range(0, len(layer), 32))
            self.files[name.decode()] = FileHashes(size, root, pieces)
        if len(self.files) == 1:  # Then libtorrent makes no folder.
            (self.name,) = self.files
        self.size = sum(file.size for file in self.files.values())
        self.hashes = [piece for file in self.files.values() for piece in file.pieces]

    def pieces_of(self, names: Collection[str]) -> list[int]:
        """Return the indices of the pieces of some files; no piece belongs to two files."""
        found: list[int] = []
        first = 0
        for name, file in self.files.items():
            if name in names:
                found += range(first, first + len(file.pieces))
            first += len(file.pieces)
        return found

    def bad_pieces(self, path: Path, advance: Callable[[int], None]) -> list[int]:
        """Return the indices of the pieces of its only file that do not match their hashes."""
        found = hash_file(path, self.piece_length, advance).pieces
        pairs = enumerate(zip(found, self.hashes, strict=True))
        return [index for index, (actual, expected) in pairs if actual != expected]


def hash_file(
    path: Path, piece_length: int, advance: Callable[[int], None] = lambda _: None
) -> FileHashes:
    """Return the hashes of a file.

    Args:
        path: the file.
        piece_length: bytes of a piece, a power of two.
        advance: called with how many more bytes are hashed.
    """
    size = path.stat().st_size
    if size <= piece_length:
        root = _single_piece_root(path.read_bytes())
        return FileHashes(size, root, (root,))
    pieces = file_piece_hashes(path, piece_length, advance)
    width = 1 << (len(pieces) - 1).bit_length()
    root = merkle_root(pieces, width, piece_hash(b"", piece_length // BLOCK))
    return FileHashes(size, root, tuple(pieces))


def encode_torrent(name: str, files: Mapping[str, FileHashes], piece_length: int) -> bytes:
    """Return the torrent of files; the same files under the same names give the same bytes.

    Args:
        name: of the folder that holds the files, or of the only file.
        files: file name -> its hashes.
        piece_length: bytes of a piece, for which they were computed.
    """
    info = {
        "file tree": {
            each: {"": {"length": file.size, "pieces root": file.root}}
            for each, file in files.items()
        },
        "meta version": 2,
        "name": name,
        "piece length": piece_length,
        "private": 1,  # Only hosts in the inventory are peers.
    }
    layers = {
        file.root: b"".join(file.pieces) for file in files.values() if file.size > piece_length
    }
    return bencode({"info": info, "piece layers": layers})


def make_torrent(
    path: Path, piece_length: int | None = None, advance: Callable[[int], None] = lambda _: None
) -> bytes:
    """Return the .torrent of a file; the same content under the same name gives the same bytes.

    Args:
        path: the file.
        piece_length: bytes of a piece, a power of two; chosen from the file's size if None.
        advance: called with how many more bytes are hashed.
    """
    size = path.stat().st_size
    if piece_length is None:
        # Several thousand pieces: with fewer, hosts would wait for each other's last pieces.
        piece_length = min(4 << 20, max(BLOCK, 1 << (size // 4096).bit_length()))
    return encode_torrent(
        path.name, {path.name: hash_file(path, piece_length, advance)}, piece_length
    )


def _single_piece_root(data: bytes) -> bytes:
    """Return the root of a file of one piece: its tree is no wider than it needs to be."""
    return piece_hash(data, 1 << (-(-len(data) // BLOCK) - 1).bit_length())
