import os
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import faulty_server as server_faults
import pytest
from faulty_server import ANNOTATIONS, IMAGES, FaultyServer, answer, archive_on, content_of

from cocodata import DatasetError
from cocodata.download import download
from cocodata.download.archives import COCO_2017, Archive, at_mirror, parse_archive
from cocodata.download.fetching import ATTEMPTS, Fetcher

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PIECE", 100_000)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def _fetcher(notes: list[str] | None = None, proxy: str | None = None) -> Fetcher:
    note = notes.append if notes is not None else lambda _: None
    return Fetcher(proxy=proxy, note=note, first_wait=0.01)


def _get(
    archive: Archive, out: Path, notes: list[str] | None = None, connections: int = 4
) -> bytes:
    fetcher = _fetcher(notes)
    (file,) = download.download([archive], out, fetcher, connections=connections)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        {archive.name, f"{archive.name}.checked"} if archive.digest else {archive.name}
    )
    return file.read_bytes()


def test_pieces_are_fetched_once_each(server: FaultyServer, tmp_path: Path) -> None:
    content = content_of(server)
    assert _get(archive_on(server), tmp_path) == content
    assert server.behaviour.sent == len(content) + 1
    assert server.behaviour.data_requests(IMAGES) == -(-len(content) // 100_000) > 3


@pytest.mark.parametrize(
    "fault",
    [
        server_faults.disconnect_halfway,
        server_faults.truncate,
        server_faults.announce_too_little,
        server_faults.announce_too_much,
        server_faults.corrupt,
        answer(500),
        answer(503),
        answer(429, Retry_After="0"),
    ],
)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "whole"])
def test_server_faults_are_retried(
    fault: server_faults.Fault, ranges: bool, server: FaultyServer, tmp_path: Path
) -> None:
    server.behaviour.ranges = ranges
    # The first request asks for the size.
    server.behaviour.fail(
        IMAGES, server_faults.serve_normally, fault, server_faults.serve_normally, fault
    )
    assert _get(archive_on(server), tmp_path, connections=2) == content_of(server)


@pytest.mark.parametrize(
    "fault", [server_faults.disconnect_halfway, server_faults.announce_too_much]
)
def test_broken_transfer_resumes_at_the_byte_where_it_broke(
    fault: server_faults.Fault, server: FaultyServer, tmp_path: Path
) -> None:
    server.behaviour.fail(IMAGES, server_faults.serve_normally, fault)
    assert _get(archive_on(server), tmp_path) == content_of(server)
    assert server.behaviour.sent == len(content_of(server)) + 1


def test_server_that_keeps_breaking_connections_still_completes(
    server: FaultyServer, tmp_path: Path
) -> None:
    # Many more failures than the limit of attempts without progress.
    server.behaviour.fail(
        IMAGES, server_faults.serve_normally, *[server_faults.disconnect_halfway] * 40
    )
    assert _get(archive_on(server), tmp_path, connections=1) == content_of(server)


def test_attempts_without_progress_are_limited(server: FaultyServer, tmp_path: Path) -> None:
    server.behaviour.fail(IMAGES, *[answer(500)] * ATTEMPTS)
    with pytest.raises(DatasetError, match=rf"HTTP 500, {ATTEMPTS} times in a row"):
        _get(archive_on(server), tmp_path)
    assert len(server.behaviour.requests) == ATTEMPTS


def test_missing_file_is_not_requested_again(server: FaultyServer, tmp_path: Path) -> None:
    missing = Archive(f"{server.url}/zips/test2017.zip")
    others = [archive_on(server), archive_on(server, ANNOTATIONS)]
    with pytest.raises(DatasetError, match="1 of 3 archives") as caught:
        download.download([missing, *others], tmp_path, _fetcher())
    assert "test2017.zip: HTTP 404, no such file" in str(caught.value)
    assert len([each for each, _ in server.behaviour.requests if "test2017" in each]) == 1
    # The others are downloaded all the same.
    assert (tmp_path / "val2017.zip").read_bytes() == content_of(server)
    assert (tmp_path / others[1].name).read_bytes() == content_of(server, ANNOTATIONS)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_all_connections_wait_for_retry_after(
    form: str, server: FaultyServer, tmp_path: Path
) -> None:
    waits: list[float] = []
    fetcher = _fetcher()
    now = [0.0]

    def wait_until(moment: float) -> None:
        waits.append(moment)

    fetcher._wait_until = wait_until  # type: ignore[method-assign]
    text = "42" if form == "seconds" else formatdate(time.time() + 42, usegmt=True)
    server.behaviour.fail(IMAGES, server_faults.serve_normally, answer(429, Retry_After=text))
    begin = time.monotonic()
    download.download([archive_on(server)], tmp_path, fetcher, connections=1)
    assert now == [0.0]
    later = [moment - begin for moment in waits if moment > begin + 30]
    # Once after the refusal, and before each later request on every connection.
    assert len(later) > 2
    assert all(40 < moment < 45 for moment in later)


def test_content_with_another_checksum_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    wrong = Archive(server.url + IMAGES, f"md5:{'0' * 32}")
    with pytest.raises(DatasetError, match=f"its checksum is md5:.*, not md5:{'0' * 32}"):
        _get(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
    wrong = Archive(server.url + IMAGES, None, 12345)
    with pytest.raises(DatasetError, match="the archive has 12,345: not the same file"):
        _get(wrong, tmp_path)


def test_web_page_is_not_accepted_as_archive(
    server: FaultyServer, tmp_path: Path, published: Path
) -> None:
    page = published / "zips" / "page.zip"
    page.write_text("<html>log in</html>")
    with pytest.raises(DatasetError, match="not a zip archive, perhaps a web page"):
        _get(Archive(f"{server.url}/zips/page.zip"), tmp_path)
    page.unlink()


def test_file_that_changes_during_the_download_is_restarted(
    server: FaultyServer, tmp_path: Path
) -> None:
    def change(handler: server_faults.Handler, content: bytes, asked: range) -> None:
        server_faults.serve_normally(handler, content, asked)
        handler.behaviour.etag = '"2"'

    server.behaviour.fail(IMAGES, server_faults.serve_normally, change)
    archive = Archive(server.url + IMAGES)
    assert _get(archive, tmp_path, connections=1) == content_of(server)
    assert server.behaviour.sent > len(content_of(server)) + 100_000


def test_killed_download_resumes(server: FaultyServer, tmp_path: Path) -> None:
    archive = archive_on(server)
    hang = [lambda *_: time.sleep(5)] * 4
    server.behaviour.fail(IMAGES, *[server_faults.serve_normally] * 4, *hang)
    program = (
        "import sys; from pathlib import Path; from cocodata.download import download;"
        "from cocodata.download.archives import Archive;"
        "from cocodata.download.fetching import Fetcher;"
        "download.PIECE = 100_000;"
        "download.download([Archive(*sys.argv[1:3])], Path(sys.argv[3]), Fetcher(), connections=1)"
    )
    assert archive.digest is not None
    running = subprocess.Popen(
        [sys.executable, "-c", program, archive.url, archive.digest, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "data-prep")},
    )
    deadline = time.monotonic() + 60
    while len(server.behaviour.requests) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert {path.name for path in tmp_path.iterdir()} == {
        "val2017.zip.part",
        "val2017.zip.part.json",
    }
    server.behaviour.faults.clear()
    server.behaviour.sent = 0
    assert _get(archive, tmp_path) == content_of(server)
    # Three pieces were on disk.
    assert server.behaviour.sent == len(content_of(server)) - 300_000 + 1


def test_existing_archives_are_used(server: FaultyServer, tmp_path: Path) -> None:
    archive = archive_on(server)
    (tmp_path / archive.name).write_bytes(content_of(server))
    assert _get(archive, tmp_path) == content_of(server)
    assert server.behaviour.requests == []
    (tmp_path / archive.name).write_bytes(content_of(server)[:-1] + b"?")
    with pytest.raises(DatasetError, match="the existing file has the checksum"):
        _get(archive, tmp_path)
    (tmp_path / archive.name).write_bytes(b"short")
    with pytest.raises(DatasetError, match="the existing file has 5 bytes"):
        _get(archive, tmp_path)


def test_too_little_disk_space_is_reported_before_downloading(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": len(content_of(server)) + 999})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DatasetError, match="GB are needed for the archives"):
        download.download([archive_on(server)], tmp_path, _fetcher(), reserve=1000)
    assert list(tmp_path.iterdir()) == []
    download.download([archive_on(server)], tmp_path, _fetcher(), reserve=999)


def test_proxy_is_used(server: FaultyServer, tmp_path: Path) -> None:
    # The server plays the proxy: it gets requests for a host that does not exist.
    archive = at_mirror(archive_on(server), "http://coco.invalid")
    download.download([archive], tmp_path, _fetcher(proxy=server.url))
    assert (tmp_path / archive.name).read_bytes() == content_of(server)


def test_proxy_from_the_environment_is_used(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    archive = at_mirror(archive_on(server), "http://coco.invalid")
    download.download([archive], tmp_path, _fetcher())
    assert (tmp_path / archive.name).read_bytes() == content_of(server)


def test_archive_arguments() -> None:
    digest = f"sha256:{'ab' * 32}"
    assert parse_archive(f"http://x/a.zip#{digest}") == Archive("http://x/a.zip", digest)
    assert parse_archive("https://x/y/a.zip").name == "a.zip"
    for text in ("a.zip", "ftp://x/a.zip", "http://x/", "http://x/a.zip#md5:12", "http://x/a#z"):
        with pytest.raises(DatasetError):
            parse_archive(text)
    assert [at_mirror(each, "https://m/coco/").url for each in COCO_2017][1:] == [
        "https://m/coco/zips/val2017.zip",
        "https://m/coco/zips/train2017.zip",
    ]
