#!/usr/bin/python
"""Merges settings into Docker's daemon.json; puts the old file back if the engine rejects it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: daemon_json
short_description: Merge settings into Docker's daemon.json
description:
  - Settings that the file has already stay. Settings that the engine would refuse to start with are
    left out. If the engine does not start with the merged file, the old file is put back.
  - In check mode it changes nothing, and returns what it would change and which running containers
    would be stopped.
options:
  settings:
    description: The settings to merge.
    type: dict
    required: true
author: The project's authors
"""

DEFAULT_FILE = Path("/etc/docker/daemon.json")
DEFAULT_DRIVER = "json-file"
# The log driver `local` has the options of `json-file` that limit a log's size.
SAME_OPTIONS = {DEFAULT_DRIVER, "local"}
# Options of dockerd that set the same as a key of the file, which must then not be in the file.
FLAGS = {
    "--log-driver": "log-driver",
    "--log-opt": "log-opts",
    "--live-restore": "live-restore",
    "--add-runtime": "runtimes",
    "--feature": "features",
}
START_SECONDS = 90
RELOAD_SECONDS = 10

Settings = dict[str, Any]


class EngineError(Exception):
    """The settings cannot be merged; the message says why and names the file."""


def merge(settings: Mapping[str, Any], present: Mapping[str, Any]) -> Settings:
    """Return `settings` with those of `present` merged over them, at all levels."""
    merged = {**settings, **present}
    for key, value in present.items():
        below = settings.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
    return merged


def added(present: Mapping[str, Any], merged: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the settings that only `merged` has, such as log-opts.max-size."""
    names = []
    for key, value in merged.items():
        below = present.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            names += added(below, value, f"{prefix}{key}.")
        elif key not in present:
            names.append(prefix + key)
    return names


def suitable(
    settings: Mapping[str, Any], present: Mapping[str, Any], engine: Mapping[str, Any]
) -> tuple[Settings, dict[str, str]]:
    """Return the settings that the engine accepts, and why each of the others is left out.

    Args:
        settings: What is to be merged.
        present: What daemon.json contains.
        engine: What `inspect_engine` returned.
    """
    left_out = {
        key: f"dockerd's command line has {flag}"
        for flag, key in FLAGS.items()
        if flag in engine["flags"]
    }
    driver = present.get("log-driver") or engine["log_driver"] or DEFAULT_DRIVER
    own_driver = settings.get("log-driver", DEFAULT_DRIVER)
    if driver != own_driver and not {driver, own_driver} <= SAME_OPTIONS:
        left_out.setdefault("log-opts", f"the log driver is {driver}, which has other options")
    if engine["swarm"]:
        left_out.setdefault("live-restore", "this engine is part of a Swarm, which excludes it")
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return kept, {key: reason for key, reason in left_out.items() if key in settings}


def stopped_by_restart(
    engine: Mapping[str, Any], present: Mapping[str, Any], merged: Mapping[str, Any]
) -> list[str]:
    """Return the running containers that applying `merged` would stop.

    With live-restore containers outlive a restart of their engine, and it is switched on without a
    restart first.
    """
    only_live_restore = added(present, merged) == ["live-restore"]
    if merged == present or only_live_restore or engine["live_restore"]:
        return []
    return [] if merged.get("live-restore") else list(engine["running"])


def _run(*command: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _info() -> dict[str, Any] | None:
    """Return `docker info`, or None if the engine does not answer."""
    done = _run("docker", "info", "--format", "{{json .}}")
    try:
        info = json.loads(done.stdout)
    except ValueError:
        return None
    return info if isinstance(info, dict) and info.get("ServerVersion") else None


def _flags() -> dict[str, str]:
    """Return the options with which the running dockerd was started."""
    pid = _run("systemctl", "show", "docker", "--property=MainPID", "--value").stdout.strip()
    try:
        words = Path(f"/proc/{pid or 0}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return {}
    flags = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            flags[name] = value if equals else following
    return flags


def inspect_engine(present: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the engine, which may be stopped."""
    info = _info()
    root = Path((info or {}).get("DockerRootDir") or present.get("data-root") or "/var/lib/docker")
    swarm = (
        info.get("Swarm", {}).get("LocalNodeState") == "active"
        if info
        else (root / "swarm/docker-state.json").exists()
    )
    failed = _run("systemctl", "is-failed", "--quiet", "docker").returncode == 0
    return {
        "answers": info is not None,
        "failed": info is None and failed,
        "flags": _flags(),
        "log_driver": (info or {}).get("LoggingDriver"),
        "live_restore": bool((info or {}).get("LiveRestoreEnabled")),
        "swarm": swarm,
        "running": _run("docker", "ps", "--format", "{{.Names}}").stdout.split() if info else [],
    }


def _last_error() -> str:
    """Return why the engine did not start, from its journal."""
    log = _run("journalctl", "--unit=docker", "--lines=50", "--output=cat").stdout.splitlines()
    reasons = [line for line in log if "failed to start daemon" in line or "unable to" in line]
    return (reasons or log or ["its journal is empty"])[-1].strip()


def _read(file: Path) -> Settings:
    try:
        content = json.loads(file.read_text(encoding="utf-8").strip() or "{}")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise EngineError(f"{file} is invalid: {error}") from error
    if not isinstance(content, dict):
        raise EngineError(f"{file} is invalid: it does not contain a JSON object")
    return content


def _write(file: Path, text: str | None) -> None:
    """Replace a file in one step, keeping its mode; remove it if there is no text."""
    if text is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
    descriptor, new = tempfile.mkstemp(dir=file.parent, prefix=".daemon.json-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(new).chmod(mode)
    Path(new).replace(file)


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=4, sort_keys=True) + "\n"


def validate(settings: Mapping[str, Any], file: Path) -> None:
    """Let dockerd check the syntax and names of the settings, if it can (version 23 or newer).

    Raises:
        EngineError: It rejects them.
    """
    if "--validate" not in _run("dockerd", "--help").stdout:
        return
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "daemon.json"
        candidate.write_text(_text(settings))
        done = _run("dockerd", "--validate", "--config-file", str(candidate))
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EngineError(f"dockerd rejects {file}: {reason.replace(str(candidate), str(file))}")


def _answers(seconds: float, *, live_restore: bool = False) -> bool:
    """Wait until the engine answers, and has live-restore switched on if `live_restore`."""
    deadline = time.monotonic() + seconds
    while True:
        info = _info()
        if info and (not live_restore or info.get("LiveRestoreEnabled")):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def _restart() -> bool:
    _run("systemctl", "reset-failed", "docker", "docker.socket")
    started = _run("systemctl", "restart", "docker", seconds=START_SECONDS + 30)
    return started.returncode == 0 and _answers(START_SECONDS)


def apply(file: Path, present: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Write the merged settings and let the running engine adopt them.

    Raises:
        EngineError: The engine does not start with them; the old file is in place again.
    """
    old = file.read_text(encoding="utf-8") if file.exists() else None
    # Contents to return to, the best one first.
    earlier = [old]
    if merged.get("live-restore") and "live-restore" not in present:
        # Adopted without a restart, and from then on containers outlive a restart.
        with_live_restore = _text({**present, "live-restore": True})
        _write(file, with_live_restore)
        _run("systemctl", "reload", "docker")
        if _answers(RELOAD_SECONDS, live_restore=True):
            earlier.insert(0, with_live_restore)
    _write(file, _text(merged))
    if added(present, merged) == ["live-restore"] and len(earlier) == 2:
        return
    if _restart():
        return
    reason = _last_error()
    for text in earlier:
        _write(file, text)
        if _restart():
            break
    else:
        raise EngineError(
            f"Docker does not start, neither with the settings merged into {file} ({reason}) nor "
            f"with the old file, which is in place again ({_last_error()})"
        )
    raise EngineError(
        f"Docker does not start with the settings merged into {file}: {reason}. The old file is in "
        "place again and Docker runs; leave settings out with docker_settings"
    )


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"settings": {"type": "dict", "required": True}}, supports_check_mode=True
    )
    os.environ["PATH"] += ":/usr/sbin:/usr/bin"
    if shutil.which("dockerd") is None:
        module.exit_json(changed=False, installed=False)
    file = Path(_flags().get("--config-file", DEFAULT_FILE))
    answer: dict[str, Any] = {"changed": False, "installed": True, "file": str(file)}
    try:
        present = _read(file)
        engine = inspect_engine(present)
        if engine["failed"]:
            raise EngineError(f"Docker does not start; see also {file}: {_last_error()}")
        kept, left_out = suitable(module.params["settings"], present, engine)
        merged = merge(kept, present)
        answer.update(
            changed=merged != present,
            added=added(present, merged),
            left_out=left_out,
            running=engine["running"],
            stops=stopped_by_restart(engine, present, merged),
            userns_remap=present.get("userns-remap") or engine["flags"].get("--userns-remap") or "",
        )
        if merged != present:
            validate(merged, file)
        if merged != present and not module.check_mode:
            if file.exists():
                answer["backup_file"] = module.backup_local(str(file))
            apply(file, present, merged)
    except EngineError as error:
        if not module.check_mode:
            module.fail_json(**{**answer, "msg": str(error)})
        answer.update(changed=False, problem=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
