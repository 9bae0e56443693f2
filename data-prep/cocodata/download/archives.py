"""The archives in which a data set is published."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urlsplit

from cocodata.errors import DatasetError
from cocodata.files import file_digest

_DIGEST = re.compile(r"(md5|sha1|sha256|sha512):([0-9a-f]+)")


@dataclass(frozen=True)
class Archive:
    """A zip archive to download.

    Attributes:
        url: its address.
        digest: `algorithm:hexadecimal`, or None if unknown.
        size: bytes, or None if unknown.
    """

    url: str
    digest: str | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlsplit(self.url).path).name


# The hashes are those in MLPerf's, NVIDIA's and Paddle's training scripts; COCO publishes none.
# COCO's server has no certificate for its name, hence http: only the hashes authenticate the files.
COCO_2017 = (
    Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "md5:f4bbac642086de4f52a3fdda2de5fa2c",
        252_907_541,
    ),
    Archive(
        "http://images.cocodataset.org/zips/val2017.zip",
        "md5:442b8da7639aecaf257c1dceb8ba8c80",
        815_585_330,
    ),
    Archive(
        "http://images.cocodataset.org/zips/train2017.zip",
        "md5:cced6f7f71b7629ddf16f17bbcfab6b2",
        19_336_861_798,
    ),
)


def parse_archive(text: str) -> Archive:
    """Parse an archive from `URL` or `URL#algorithm:hexadecimal`.

    Raises:
        DatasetError: the text is neither.
    """
    url, digest = urldefrag(text)
    parts = urlsplit(url)
    archive = Archive(url, digest or None)
    if parts.scheme not in ("http", "https") or not parts.netloc or not archive.name:
        raise DatasetError(f"{text}: not an http or https address of a file")
    if digest:
        match = _DIGEST.fullmatch(digest)
        if match is None or hashlib.new(match[1]).digest_size * 2 != len(match[2]):
            raise DatasetError(
                f"{text}: {digest!r} is not a checksum. Write URL#md5:... or URL#sha256:... with "
                "all digits in lower case"
            )
    return archive


def at_mirror(archive: Archive, mirror: str) -> Archive:
    """Return the archive on a mirror, which has it under the same path as the original server."""
    return replace(archive, url=mirror.rstrip("/") + urlsplit(archive.url).path)


def archive_digest(path: Path, algorithm: str) -> str:
    """Return `algorithm:hexadecimal` of a file's content."""
    return f"{algorithm}:{file_digest(path, algorithm)}"
