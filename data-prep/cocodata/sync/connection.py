"""The control machine's connection to an agent."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson

from cocodata.sync.hosts import Host, agent_environment, python_command


@dataclass(frozen=True)
class Program:
    """A program that is sent to hosts.

    Attributes:
        modules: its modules, in the order in which they must be loaded.
        handler: the module and the class that executes its commands.
    """

    modules: tuple[str, ...]
    handler: tuple[str, str]

    def sources(self) -> dict[str, str]:
        """Return the modules' source by name."""
        found = {}
        for name in self.modules:
            package, _, module = name.rpartition(".")
            found[name] = (resources.files(package) / f"{module}.py").read_text(encoding="utf-8")
        return found


SWARM_MODULES = ("cocodata.sync.torrent", "cocodata.sync.store", "cocodata.sync.agent")
DATASET_PROGRAM = Program(SWARM_MODULES, ("cocodata.sync.agent", "DatasetHandler"))

# Skips a password line that sudo did not consume.
_BOOTSTRAP = """
import json, sys, types
line = ""
while not line.startswith("modules:"):
    line = sys.stdin.readline()
    if not line:
        sys.exit("no program received")
program = json.loads(line[len("modules:"):])
for name, source in program["modules"].items():
    parts = name.split(".")
    for package in (".".join(parts[:end]) for end in range(1, len(parts))):
        sys.modules.setdefault(package, types.ModuleType(package))
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module, name = program["handler"]
handler = getattr(sys.modules[module], name)(program["setting"])
sys.modules["cocodata.sync.agent"].serve(handler)
"""

_HEARTBEAT = 10.0  # Seconds between messages that show that this machine is still there.


class HostFailedError(Exception):
    """A host has failed; the message says why."""


class AgentConnection:
    """A running agent on a host.

    Attributes:
        host: where it runs.
        status: the last progress that it sent.
        failure: why it has failed, or None.
    """

    def __init__(
        self, host: Host, settings: Mapping[str, Any], program: Program = DATASET_PROGRAM
    ) -> None:
        """Prepare the connection; `open` starts the agent.

        Args:
            host: where the agent is to run.
            settings: what the program's handler is made with.
            program: what runs on the host.
        """
        self.host = host
        self._program = program
        self.status: dict[str, Any] = {}
        self.failure: str | None = None
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # What ssh needs until it has logged in.
        self._resources = contextlib.ExitStack()
        self._stderr: list[str] = []

    async def open(self) -> None:
        """Start the agent.

        Raises:
            HostFailedError: the program that reaches the host cannot be started.
        """
        environment = self._resources.enter_context(agent_environment(self.host))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *python_command(self.host, _BOOTSTRAP),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 26,
                env=environment,
                # Ctrl-C must only reach this process; agents end when their input does.
                start_new_session=True,
            )
        except OSError as error:
            self.failure = f"{self.host.command[0]}: {error.strerror}"
            raise HostFailedError(self.failure) from None
        if self.host.password is not None:
            await self._send(self.host.password.encode() + b"\n")
        program = orjson.dumps(
            {
                "modules": self._program.sources(),
                "handler": self._program.handler,
                "setting": self._settings,
            }
        )
        await self._send(b"modules:" + program + b"\n")
        self._tasks = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._read_stderr()),
            asyncio.create_task(self._send_heartbeats()),
        ]

    async def request(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Execute a command on the host, and return the answer.

        Raises:
            HostFailedError: it failed, or the host is gone.
        """
        if self.failure is None:
            self._answer = asyncio.get_running_loop().create_future()
            await self._send(orjson.dumps({"do": name, **arguments}) + b"\n")
        if self.failure is not None or self._answer is None:
            raise HostFailedError(self.failure or "not connected")
        return await self._answer

    def fail(self, failure: str) -> None:
        """Mark the host as failed, and end its agent."""
        if self.failure is None:
            self.failure = failure
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(HostFailedError(self.failure))
            self._answer.exception()  # There may be no waiter; mark the exception as retrieved.
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """End the agent."""
        self._resources.close()
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # Its output says why it has ended.

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                message = orjson.loads(line)
            except ValueError:
                self._stderr.append(line.decode(errors="replace").strip())
                continue
            event = message.pop("event", None)
            if event == "progress":
                self.status = message
            elif event == "failed":
                self.fail(message["message"])
            elif self._answer is not None and not self._answer.done():
                self._answer.set_result(message)
        await self._process.wait()
        await asyncio.sleep(0.1)  # Let the last lines of stderr arrive.
        messages = "; ".join(self._stderr[-3:])
        self.fail(messages or f"the connection ended (status {self._process.returncode})")

    async def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").strip()
            if text:
                self._stderr.append(text)

    async def _send_heartbeats(self) -> None:
        while self.failure is None:
            await asyncio.sleep(_HEARTBEAT)
            await self._send(b'{"ping": 1}\n')
