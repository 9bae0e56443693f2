"""`python -m cluster train` with a master on this machine: what it requests, and how it ends."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from determined.common import util
from typer.testing import CliRunner

from cluster import connection
from cluster.cli import app
from tests.agents import CPU, agent
from tests.cluster.fake_master import Experiment, FakeMaster, Trial, stamp
from tests.cluster.test_capacity import pool

CONFIG = Path(__file__).parents[2] / "experiments" / "const.yaml"
SECONDS = 30.0
USER = {"username": "determined", "admin": False, "active": True}


def line(number: int) -> str:
    entry = {
        **{"id": f"{number}", "trialId": 11, "timestamp": stamp(number), "level": "LOG_LEVEL_INFO"},
        **{"message": "", "log": f"line {number}\n"},
    }
    return json.dumps({"result": entry}) + "\n"


class Master(ThreadingHTTPServer):
    """Answers as Determined's master does while an experiment runs and ends."""

    daemon_threads = True

    def __init__(self, last_state: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states = iter(["QUEUED", "RUNNING", "RUNNING"])
        self.last_state = last_state
        self.requests: list[str] = []
        self.submitted: dict[str, Any] = {}
        self.token = "t"
        self.streamed = threading.Event()  # a line has been sent
        self.closed = threading.Event()  # long after the experiment's end

    def answer(self, path: str) -> Any:
        """The content of an answer to a GET."""
        match path.removeprefix("/api/v1/").split("/"):
            case ["me"]:
                return {"user": USER}
            case ["agents"]:
                return {"agents": [agent("node-1", CPU)]}
            case ["resource-pools"]:
                return {"resourcePools": [pool("default", True)]}
            case ["experiments", "1", "checkpoints"]:
                return {"checkpoints": [], "pagination": {}}
            case ["experiments", "1"]:
                return self.experiment(next(self.states, self.last_state))
        return self.experiment("RUNNING", path)

    def experiment(self, state: str, path: str = "/api/v1/experiments/1") -> Any:
        config = {"name": "here", "searcher": {"name": "single"}}
        fake = FakeMaster([Experiment(1, config, [Trial(11)], state=state)])
        return fake._do_request(path=path, params={"offset": 0}).json()


class Handler(BaseHTTPRequestHandler):
    server: Master

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        follow = parse_qs(url.query).get("follow")
        self.server.requests.append(url.path + (f" follow={follow[0]}" if follow else ""))
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.send(b'{"error": {"error": "invalid credentials"}}', status=401)
            return
        if follow == ["true"]:
            self.send(line(1).encode())
            self.server.streamed.set()
            assert self.server.closed.wait(SECONDS)
        elif follow == ["false"]:
            assert self.server.streamed.wait(SECONDS)
            self.send((line(1) + line(2)).encode())
        else:
            self.send(json.dumps(self.server.answer(url.path)).encode())

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/login"):
            self.send(json.dumps({"token": self.server.token, "user": USER}).encode())
        else:
            self.server.submitted = body
            created = self.server.experiment("PAUSED")
            self.send(json.dumps({**created, "config": {}, "warnings": []}).encode())

    def send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture(params=["COMPLETED"])
def master(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Master]:
    with Master(request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(connection, "FOLDER", tmp_path)
        monkeypatch.setattr(connection, "_protect", lambda: None)
        content = {
            **{"master": f"http://127.0.0.1:{server.server_port}", "user": "determined"},
            **{"password": "p", "template": "here", "data": "/data/coco"},
        }
        (tmp_path / "here.yaml").write_text(yaml.safe_dump(content))
        yield server
        server.closed.set()
        server.shutdown()


def train(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", str(CONFIG), "--cluster", "here", *arguments])
    return result.exit_code, result.output


LOGIN = "/api/v1/auth/login"


def test_one_login_serves_the_command_and_those_after_it(master: Master, tmp_path: Path) -> None:
    code, output = train()
    assert code == 0, output
    assert master.requests.count(LOGIN) == 1
    assert train("--detach")[0] == 0
    assert master.requests.count(LOGIN) == 1
    token = tmp_path / ".here.token"
    assert token.stat().st_mode & 0o777 == 0o600
    connection.delete_connection("here")
    assert not token.exists()


def change_password(master: Master, folder: Path) -> None:
    file = folder / "here.yaml"
    file.write_text(file.read_text().replace("password: p", "password: q"))


def end_session(master: Master, folder: Path) -> None:
    master.token = "another"


def let_a_day_pass(master: Master, folder: Path) -> None:
    yesterday = time.time() - 24 * 3600
    os.utime(folder / ".here.token", (yesterday, yesterday))


@pytest.mark.parametrize("change", [change_password, end_session, let_a_day_pass])
def test_a_token_that_may_be_invalid_is_replaced(
    master: Master, tmp_path: Path, change: Callable[[Master, Path], None]
) -> None:
    assert train("--detach")[0] == 0
    change(master, tmp_path)
    for _ in range(2):
        code, output = train("--detach")
        assert code == 0, output
    assert master.requests.count(LOGIN) == 2


def test_it_returns_while_the_stream_of_logs_is_still_open(master: Master) -> None:
    """The master closes that 5 s after the trial's end, and sends nothing new in it."""
    code, output = train()
    assert code == 0, output
    assert not master.closed.is_set()
    logs = [each for each in master.requests if "/logs" in each]
    assert sorted(logs) == [f"/api/v1/trials/11/logs follow={each}" for each in ("false", "true")]
    assert [each for each in output.splitlines() if each.startswith("line")] == ["line 1", "line 2"]


@pytest.mark.parametrize("master", ["ERROR"], indirect=True)
def test_an_experiment_that_failed_shows_its_last_lines(master: Master) -> None:
    code, output = train()
    assert code == 1
    assert "line 2" in output


def test_the_files_changes_and_commit_are_submitted(master: Master) -> None:
    code, output = train("--config", "hyperparameters.lr=0.00001", "--detach")
    assert code == 0, output
    assert master.submitted["activate"] is True
    assert master.submitted["template"] == "here"
    config = util.yaml_safe_load(master.submitted["config"])
    assert config["hyperparameters"]["lr"] == pytest.approx(1e-5)
    assert [label.split(":")[0] for label in config["labels"]] == ["commit"]
    files = {each["path"] for each in master.submitted["modelDefinition"]}
    assert "experiments/train.py" in files
    assert not any(path.startswith((".secrets", "tests", ".git")) for path in files)
    # What the command prints is for people; the list of files is not.
    assert "Preparing files" not in output
