"""What agents are told by the program between them and Docker, with a Docker that only records."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docker.scripts import load

network = load("local/trial_network")

CREATE = {
    "Image": "task:1",
    "ExposedPorts": {"1734/tcp": {}, "12360/tcp": {}},
    "HostConfig": {
        "NetworkMode": "host",
        "PublishAllPorts": True,
        "PortBindings": {"22/tcp": [{"HostPort": "22"}]},
        "ShmSize": 64,
    },
    "NetworkingConfig": {"EndpointsConfig": {"other": {}}},
}
DESCRIPTION = {
    "Id": "abc",
    "Config": {"ExposedPorts": {"1734/tcp": {}, "29400/tcp": {}}},
    "HostConfig": {"NetworkMode": "here_trials"},
    "NetworkSettings": {
        "Networks": {"here_trials": {"IPAddress": "172.25.0.7"}},
        "Ports": {"1734/tcp": None},
    },
}


class FakeDocker:
    """Records requests, and answers each with the next of the given answers."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = head.decode().lower().split("\r\n")
        lengths = [int(f.partition(":")[2]) for f in fields if f.startswith("content-length:")]
        self.requests.append(head + (await reader.readexactly(lengths[0]) if lengths else b""))
        writer.write(self.answers.pop(0))
        await writer.drain()
        writer.close()


def run(docker: FakeDocker, folder: Path, act: Callable[[Any, Path], Awaitable[Any]]) -> Any:
    """Run a test's part with the program between it and the fake."""

    async def inner() -> Any:
        server = await asyncio.start_unix_server(docker.answer, folder / "engine")
        program = network.TrialNetwork("here_trials", str(folder / "engine"))
        socket = folder / "agents"
        serving = asyncio.create_task(program.serve(socket))
        while not socket.exists():
            await asyncio.sleep(0.01)
        try:
            return await asyncio.wait_for(act(program, socket), 10)
        finally:
            serving.cancel()
            server.close()

    return asyncio.run(inner())


def exchange(request: bytes) -> Callable[[Any, Path], Awaitable[bytes]]:
    async def act(_: Any, socket: Path) -> bytes:
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    return act


def post(path: str, body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.mark.parametrize("path", ["/containers/create", "/v1.45/containers/create?name=x"])
@pytest.mark.parametrize("asked", ["host", "bridge", "container:abc", ""])
def test_a_new_container_is_on_the_trials_network_only(
    path: str, asked: str, tmp_path: Path
) -> None:
    docker = FakeDocker(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
    body = {**CREATE, "HostConfig": {**CREATE["HostConfig"], "NetworkMode": asked}}  # type: ignore[dict-item]
    answer = run(docker, tmp_path, exchange(post(path, body)))
    assert answer.startswith(b"HTTP/1.1 201")
    (request,) = docker.requests
    head, _, content = request.partition(b"\r\n\r\n")
    assert f"POST {path} ".encode() in head
    got = json.loads(content)
    assert got["HostConfig"] == {
        "NetworkMode": "here_trials",
        "PublishAllPorts": False,
        "PortBindings": {},
        "ShmSize": 64,
    }
    assert got["NetworkingConfig"] == {}
    assert got["Image"] == "task:1"


def test_a_container_without_settings_is_on_the_network_too() -> None:
    got = network.on_network({"Image": "x"}, "here_trials")
    assert got["HostConfig"]["NetworkMode"] == "here_trials"
    assert network.on_network({"HostConfig": None}, "n")["HostConfig"]["NetworkMode"] == "n"


# As Determined's agent asks for GPUs (agent/internal/containers/spec.go).
GPUS = {
    "Driver": "nvidia",
    "Count": 0,
    "DeviceIDs": ["GPU-0a", "GPU-1a"],
    "Capabilities": [["gpu", "compute", "utility"]],
    "Options": None,
}


def test_a_container_with_gpus_gets_the_video_libraries(tmp_path: Path) -> None:
    """Nothing else of the request changes, nor a request of another kind."""
    docker = FakeDocker(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
    other = {"Driver": "cdi", "DeviceIDs": ["vendor.com/gpu=0"], "Capabilities": [["gpu"]]}
    host = {"ShmSize": 64, "DeviceRequests": [GPUS, other]}
    body = {"Image": "task:1", "HostConfig": host}
    run(docker, tmp_path, exchange(post("/v1.45/containers/create", body)))
    content = json.loads(docker.requests[0].partition(b"\r\n\r\n")[2])
    changed = {**GPUS, "Capabilities": [["gpu", "compute", "utility", "video"]]}
    assert content["HostConfig"]["DeviceRequests"] == [changed, other]
    assert content["HostConfig"]["ShmSize"] == 64
    assert network.with_video(content) == content


@pytest.mark.parametrize("host", [None, {}, {"DeviceRequests": None}, {"DeviceRequests": []}])
def test_a_container_without_gpus_gets_nothing(host: Any) -> None:
    assert network.with_video({"HostConfig": host}) == {"HostConfig": host}


def test_a_request_of_unknown_length_is_refused(tmp_path: Path) -> None:
    docker = FakeDocker()
    request = b"POST /containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert run(docker, tmp_path, exchange(request)).startswith(b"HTTP/1.1 411")
    assert docker.requests == []


def test_exposed_ports_are_at_the_containers_own_address(tmp_path: Path) -> None:
    content = json.dumps(DESCRIPTION).encode()
    docker = FakeDocker(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + content)
    request = b"GET /v1.45/containers/abc/json HTTP/1.1\r\nHost: docker\r\n\r\n"
    head, _, body = run(docker, tmp_path, exchange(request)).partition(b"\r\n\r\n")
    assert docker.requests[0].startswith(b"GET /v1.45/containers/abc/json HTTP/1.0\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    got = json.loads(body)
    assert got["NetworkSettings"]["Ports"] == {
        "1734/tcp": [{"HostIp": "172.25.0.7", "HostPort": "1734"}],
        "29400/tcp": [{"HostIp": "172.25.0.7", "HostPort": "29400"}],
    }
    assert got["HostConfig"] == DESCRIPTION["HostConfig"]


def test_an_unknown_container_is_reported_as_docker_does(tmp_path: Path) -> None:
    error = b'HTTP/1.0 404 Not Found\r\nContent-Length: 15\r\n\r\n{"message":"x"}'
    request = b"GET /containers/abc/json HTTP/1.1\r\n\r\n"
    assert run(FakeDocker(error), tmp_path, exchange(request)) == error


@pytest.mark.parametrize(
    "start", ["GET /containers/json?all=1", "POST /containers/abc/wait", "HEAD /_ping"]
)
def test_everything_else_is_passed_on(start: str, tmp_path: Path) -> None:
    """Each request by a connection of its own, so that none goes past the program."""
    docker = FakeDocker(b"HTTP/1.1 200 OK\r\n\r\nas it is")
    request = f"{start} HTTP/1.1\r\nHost: docker\r\nConnection: keep-alive\r\n\r\n".encode()
    assert run(docker, tmp_path, exchange(request)).endswith(b"as it is")
    expected = f"{start} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
    assert docker.requests == [expected.encode()]


def test_what_an_earlier_run_left_is_removed(tmp_path: Path) -> None:
    listed = b'HTTP/1.0 200 OK\r\n\r\n[{"Id": "one"}, {"Id": "two"}]'
    docker = FakeDocker(listed, *2 * [b"HTTP/1.0 204 No Content\r\n\r\n"])

    async def act(program: Any, _: Path) -> None:
        await program.remove_trials()

    run(docker, tmp_path, act)
    first, *others = [request.decode().split("\r\n")[0] for request in docker.requests]
    assert "here_trials" in first
    assert "ai.determined.container.type" in first
    assert others == [f"DELETE /containers/{name}?force=1 HTTP/1.0" for name in ("one", "two")]
