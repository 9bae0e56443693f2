"""Merging into daemon.json: what is left out, what stops containers, and what a refusal leaves."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.ansible.conftest import ANSIBLE

SETTINGS: dict[str, Any] = yaml.safe_load((ANSIBLE / "group_vars/all/settings.yml").read_text())[
    "docker_settings"
]
ENGINE: dict[str, Any] = {
    "answers": True,
    "failed": False,
    "flags": {},
    "log_driver": "json-file",
    "live_restore": False,
    "swarm": False,
    "running": ["web"],
}


def test_settings_of_the_file_stay(daemon_json: ModuleType) -> None:
    present = {"data-root": "/big", "live-restore": False, "log-opts": {"max-size": "1m"}}
    merged = daemon_json.merge(SETTINGS, present)
    assert merged == present | {"log-opts": {"max-size": "1m", "max-file": "3"}}
    assert daemon_json.added(present, merged) == ["log-opts.max-file"]
    assert daemon_json.merge(SETTINGS, merged) == merged


@pytest.mark.parametrize(
    ("present", "engine", "left_out"),
    [
        ({}, {}, set()),
        ({"log-driver": "local"}, {"log_driver": "local"}, set()),
        ({"log-driver": "journald"}, {"log_driver": "journald"}, {"log-opts"}),
        # The file counts even if the engine has stopped.
        ({"log-driver": "journald"}, {"answers": False, "log_driver": None}, {"log-opts"}),
        ({}, {"log_driver": "syslog"}, {"log-opts"}),
        ({}, {"flags": {"--log-opt": "max-size=1m"}}, {"log-opts"}),
        ({}, {"flags": {"--live-restore": ""}}, {"live-restore"}),
        ({}, {"swarm": True}, {"live-restore"}),
    ],
)
def test_what_the_engine_would_refuse_is_left_out(
    daemon_json: ModuleType, present: dict[str, Any], engine: dict[str, Any], left_out: set[str]
) -> None:
    kept, reasons = daemon_json.suitable(SETTINGS, present, ENGINE | engine)
    assert set(reasons) == left_out
    assert set(kept) == set(SETTINGS) - left_out


def test_which_containers_a_restart_stops(daemon_json: ModuleType) -> None:
    def stopped(present: dict[str, Any], **engine: Any) -> list[str]:
        state = ENGINE | engine
        kept, _ = daemon_json.suitable(SETTINGS, present, state)
        found: list[str] = daemon_json.stopped_by_restart(
            state, present, daemon_json.merge(kept, present)
        )
        return found

    assert stopped({}) == []  # live-restore comes first
    assert stopped(SETTINGS) == []
    assert stopped({"live-restore": False}) == ["web"]
    assert stopped({}, swarm=True) == ["web"]
    assert stopped({}, swarm=True, running=[]) == []


class Engine:
    """An engine that refuses some contents of its file."""

    def __init__(self, module: ModuleType, file: Path, refused: set[str]) -> None:
        self.module, self.file, self.refused = module, file, refused
        self.runs, self.live_restore = True, False
        self.commands: list[str] = []

    def run(self, *command: str, seconds: float = 30) -> Any:
        del seconds
        self.commands.append(" ".join(command[:2]))
        content = json.loads(self.file.read_text()) if self.file.exists() else {}
        code, output = 0, ""
        if command[:2] == ("systemctl", "reload"):
            self.live_restore = content.get("live-restore", False)
        elif command[:2] == ("systemctl", "restart"):
            self.runs = not self.refused & set(content)
            self.live_restore = content.get("live-restore", False)
            code = int(not self.runs)
        elif command[:2] == ("docker", "info") and self.runs:
            output = json.dumps({"ServerVersion": "1", "LiveRestoreEnabled": self.live_restore})
        elif command[0] == "journalctl":
            output = "started\nfailed to start daemon: unknown log opt 'max-file'\nstopped"
        return self.module.subprocess.CompletedProcess(command, code, output, "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "docker/daemon.json"


def test_live_restore_alone_needs_no_restart(
    daemon_json: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(daemon_json, file, set())
    monkeypatch.setattr(daemon_json, "_run", engine.run)
    daemon_json.apply(file, {}, {"live-restore": True})
    assert "systemctl restart" not in engine.commands
    assert json.loads(file.read_text()) == {"live-restore": True}
    assert file.stat().st_mode & 0o777 == 0o644


def test_live_restore_comes_before_the_restart(
    daemon_json: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(daemon_json, file, set())
    monkeypatch.setattr(daemon_json, "_run", engine.run)
    daemon_json.apply(file, {}, SETTINGS)
    changes = [
        each for each in engine.commands if each in ("systemctl reload", "systemctl restart")
    ]
    assert changes == ["systemctl reload", "systemctl restart"]
    assert json.loads(file.read_text()) == SETTINGS


@pytest.mark.parametrize("live_restore", [True, False])
def test_an_engine_that_refuses_runs_again_with_the_old_file(
    daemon_json: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch, live_restore: bool
) -> None:
    engine = Engine(daemon_json, file, {"log-opts"})
    monkeypatch.setattr(daemon_json, "_run", engine.run)
    file.parent.mkdir()
    old = {"log-driver": "journald"} | ({} if live_restore else {"live-restore": False})
    file.write_text(json.dumps(old))
    file.chmod(0o640)
    with pytest.raises(daemon_json.EngineError) as error:
        daemon_json.apply(file, old, daemon_json.merge(SETTINGS, old))
    assert engine.runs
    # Containers outlive the second start, too.
    assert json.loads(file.read_text()) == {"live-restore": live_restore} | old
    assert file.stat().st_mode & 0o777 == 0o640
    assert str(file) in str(error.value)
    assert "unknown log opt 'max-file'" in str(error.value)


def test_an_invalid_file_is_named(daemon_json: ModuleType, file: Path) -> None:
    assert daemon_json._read(file) == {}
    file.parent.mkdir()
    for text in ("{,}", "[]"):
        file.write_text(text)
        with pytest.raises(daemon_json.EngineError, match=r"daemon\.json is invalid"):
            daemon_json._read(file)


RESULT: dict[str, Any] = {
    "changed": True,
    "installed": True,
    "file": "/etc/docker/daemon.json",
    "added": ["live-restore"],
    "left_out": {"log-opts": "the log driver is journald, which has other options"},
    "running": ["web"],
    "stops": [],
    "userns_remap": "",
}


def test_preflight_shows_changes_and_what_they_stop(daemon_settings: ModuleType) -> None:
    results = {
        "kept": RESULT,
        "stopped": RESULT | {"stops": ["web", "db"], "left_out": {}},
        "same": RESULT | {"changed": False},
        "bare": {"changed": False, "installed": False},
        "gone": {},
    }
    kept, stopped = daemon_settings.daemon_notes(results)
    assert kept.startswith("kept: /etc/docker/daemon.json gets live-restore; not log-opts: the log")
    assert kept.endswith("Running containers keep running")
    assert "STOPS these running containers: web, db." in stopped


def test_preflight_refuses_what_would_fail_later(daemon_settings: ModuleType) -> None:
    assert daemon_settings.daemon_checks(RESULT, "node1") == []
    assert daemon_settings.daemon_checks({"changed": False, "installed": False}, "node1") == []
    (problem,) = daemon_settings.daemon_checks({"problem": "Docker does not start"}, "node1")
    assert (problem["name"], problem["ok"]) == ("daemon.json", False)
    (problem,) = daemon_settings.daemon_checks(RESULT | {"userns_remap": "default"}, "node1")
    assert "userns-remap is default" in problem["message"]


def test_dockerd_checks_names_first(daemon_json: ModuleType) -> None:
    if (
        shutil.which("dockerd") is None
        or "--validate" not in daemon_json._run("dockerd", "--help").stdout
    ):
        pytest.skip("there is no dockerd that can validate (23 or newer)")
    file = Path("/etc/docker/daemon.json")
    daemon_json.validate(SETTINGS, file)
    with pytest.raises(daemon_json.EngineError, match=r"/etc/docker/daemon\.json.*nonsense"):
        daemon_json.validate({"nonsense": 1}, file)
