"""Requests to the master: what they return, what they say when they fail, and what stays secret."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.ansible.conftest import ANSIBLE, load
from tests.ansible.rendering import BIN, run

PASSWORD, TOKEN = "the-administrators-password", "the-token-of-a-session"


class Master(HTTPServer):
    """Answers like Determined's master, and lists the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, Any]] = []
        # Statuses of the next logins.
        self.logins: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Master

    def do_GET(self) -> None:
        path = self.path.removeprefix("/api/v1/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.server.requests.append((self.command, path, body))
        if path == "auth/login":
            status = self.server.logins.pop(0) if self.server.logins else 200
            status = status if body["password"] == PASSWORD else 401
            self._answer(status, {"token": TOKEN} if status == 200 else {})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {})
        elif path == "missing":
            self._answer(404, {"error": {"code": 5, "error": "no such thing"}})
        else:
            self._answer(200, {"path": path})

    do_POST = do_PATCH = do_GET  # noqa: N815

    def _answer(self, status: int, content: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def master() -> Iterator[Master]:
    with Master() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load("library/master_request.py")


def _login(url: str, **changes: str) -> dict[str, str]:
    login = {"url": url, "authority": "/ca.crt", "user": "admin", "password": PASSWORD}
    return {**login, "password_file": "/secrets/admin_password", **changes}


def _perform(module: ModuleType, login: dict[str, str], check: bool = False, **request: Any) -> Any:
    default = {"path": ["agents"], "method": "GET", "body": None, "status": [200]}
    return module.perform(login, {**default, **request}, check=check)


def test_one_session_for_all_requests_which_ends(module: ModuleType, master: Master) -> None:
    result = _perform(module, _login(master.url), path=["master", "agents"])
    assert result["answers"] == [{"path": "master"}, {"path": "agents"}]
    assert (result["status"], result["json"], result["changed"]) == (200, {"path": "agents"}, False)
    paths = [path for _, path, _ in master.requests]
    assert paths == ["auth/login", "master", "agents", "auth/logout"]


def test_a_change_is_sent_unless_it_is_only_checked(module: ModuleType, master: Master) -> None:
    change = {"path": ["users/2"], "method": "PATCH", "body": {"admin": False}}
    assert _perform(module, _login(master.url), check=True, **change)["changed"]
    assert "users/2" not in [path for _, path, _ in master.requests]
    assert _perform(module, _login(master.url), **change)["changed"]
    assert ("PATCH", "users/2", {"admin": False}) in master.requests


def test_a_missing_thing_is_an_error_unless_it_is_allowed(
    module: ModuleType, master: Master
) -> None:
    login = _login(master.url)
    with pytest.raises(module.RequestError, match=r"GET .*/missing: status 404 no such thing"):
        _perform(module, login, path=["missing"])
    result = _perform(module, login, path=["missing"], status=[200, 404])
    assert (result["status"], result["changed"]) == (404, False)


def test_a_refused_password_names_its_file(module: ModuleType, master: Master) -> None:
    login = _login(master.url, password="wrong")
    with pytest.raises(module.RequestError, match=r"refuses the password in /secrets/admin_passw"):
        _perform(module, login)
    assert _perform(module, login, status=[200, 401])["status"] == 401


def test_a_master_in_trouble_is_waited_for(
    module: ModuleType, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    master.logins = [500, 502]
    assert _perform(module, _login(master.url))["status"] == 200
    monkeypatch.setattr(module, "LOGIN_SECONDS", 0)
    with pytest.raises(module.RequestError, match=r"127\.0\.0\.1:1/api/v1/auth/login does not ans"):
        _perform(module, _login("http://127.0.0.1:1"))


def test_no_verbosity_shows_a_password_or_a_token(master: Master, tmp_path: Path) -> None:
    request = {"login": _login(master.url), "path": "users", "method": "POST"}
    new = "of-a-new-user"
    request |= {"body": {"password": new}, "secrets": [new]}
    tasks = [
        {"master_request": request, "register": "answer"},
        {"ansible.builtin.debug": {"var": "answer"}},
        {"master_request": request | {"path": "missing"}},
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    python = f"ansible_python_interpreter={sys.executable}"
    outcome = run(
        BIN / "ansible-playbook",
        *("-vvvv", "--diff", "-i", "localhost,", "-e", python, tmp_path / "play.yml"),
        ANSIBLE_LIBRARY=str(ANSIBLE / "library"),
    )
    output = outcome.stdout + outcome.stderr
    assert "status 404 no such thing" in output, output
    assert ("POST", "users", {"password": new}) in master.requests
    # The playbook's own lines name the secrets; only its results are looked at.
    assert TOKEN not in output
    for secret in (PASSWORD, new):
        shown = [line for line in output.splitlines() if secret in line]
        assert shown == [], shown


def _tasks(tasks: Any, hidden: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    for task in tasks or []:
        below = hidden or bool(task.get("no_log"))
        yield {key: value for key, value in task.items() if key not in ("block", "rescue")}, below
        for key in ("block", "rescue", "always"):
            yield from _tasks(task.get(key), below)


SECRET = ("_password }}", "_password)", "_password}", "proxy[", "master_connection |")


def test_tasks_with_secrets_hide_their_output() -> None:
    """The module master_request hides them itself; every other task needs no_log."""
    found = 0
    for file in sorted((ANSIBLE / "roles").glob("*/tasks/*.yml")):
        for task, hidden in _tasks(yaml.safe_load(file.read_text())):
            text = yaml.safe_dump(task, width=10_000)
            if any(part in text for part in SECRET) and "master_request" not in task:
                found += 1
                assert hidden, f"{file}: {task['name']}"
    assert found >= 4
