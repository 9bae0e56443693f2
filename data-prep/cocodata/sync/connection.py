"""The control machine's connection to an agent."""

import asyncio
from importlib import resources
from typing import Any

import orjson

from cocodata.sync.hosts import Host, agent_environment, python_command

# In the order in which they must be loaded.
_MODULES = ("cocodata.sync.torrent", "cocodata.sync.store", "cocodata.sync.agent")

# Skips a password line that sudo did not consume.
_BOOTSTRAP = """
import json, sys, types
line = ""
while not line.startswith("modules:"):
    line = sys.stdin.readline()
    if not line:
        sys.exit("no program received")
program = json.loads(line[len("modules:"):])
for name in ("cocodata", "cocodata.sync", *program["modules"]):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(program["modules"].get(name, ""), name, "exec"), module.__dict__)
sys.modules["cocodata.sync.agent"].serve(program["setting"])
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

    def __init__(self, host: Host, settings: dict[str, str]) -> None:
        """Prepare the connection; `open` starts the agent.

        Args:
            host: where the agent is to run.
            settings: its store's folder, the data set's name and the link's path.
        """
        self.host = host
        self.status: dict[str, Any] = {}
        self.failure: str | None = None
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stderr: list[str] = []

    async def open(self) -> None:
        """Start the agent.

        Raises:
            HostFailedError: the program that reaches the host cannot be started.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *python_command(self.host, _BOOTSTRAP),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 26,
                env=agent_environment(),
                # Ctrl-C must only reach this process; agents end when their input does.
                start_new_session=True,
            )
        except OSError as error:
            self.failure = f"{self.host.command[0]}: {error.strerror}"
            raise HostFailedError(self.failure) from None
        if self.host.password is not None:
            await self._send(self.host.password.encode() + b"\n")
        package = resources.files("cocodata.sync")
        modules = {
            name: package.joinpath(f"{name.rpartition('.')[2]}.py").read_text(encoding="utf-8")
            for name in _MODULES
        }
        program = orjson.dumps({"modules": modules, "setting": self._settings})
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
