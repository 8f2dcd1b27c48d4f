"""ForeignServer: one server of another engine as a child process: its log read, its health asked, its end told.

It stays in the process group of this process, so that whoever kills the group kills it too. This file does not know
Recipes or flags.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import aiohttp

from mcp_core.child_process import lines_of, signal_name
from mcp_core.engines.log_lines import Learned, cause_of_end
from mcp_core.errors import LoadFailed, McpError

__all__ = ["ForeignServer", "outside_environment", "version_of"]

# vLLM's cause is followed by two more tracebacks, of the process that died and of the one that waited for it.
LAST_LINES = 400
HEALTH_EVERY_S = 0.25
END_EVERY_S = 0.1
HEALTH_TIMEOUT_S = 5.0
VERSION_TIMEOUT_S = 30.0
# A grandchild may hold a dead server's pipe open; its last lines are not waited for longer than this.
LAST_LINES_S = 1.0


def outside_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for another interpreter: nothing of our Python, and no secret of ours."""
    dropped = ("PYTHON", "VIRTUAL_ENV", "MCP_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(extra)


async def version_of(python: Path, package: str, title: str) -> str:
    """The version that this interpreter has of a package. Raises LoadFailed where it has none."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        returncode, output = await _run_outside(python, "-c", code)
    except (OSError, TimeoutError) as error:
        raise LoadFailed(f"{python} cannot be run: {error}.", "Is it a Python interpreter?") from error
    if returncode:
        raise LoadFailed(f"{python} has no {title}.", f"Install it there: {python} -m pip install {package}")
    return output.decode(errors="replace").strip()


async def _run_outside(*command: str | Path) -> tuple[int | None, bytes]:
    """Its exit code and output. Raises OSError, and TimeoutError where it takes too long; then it is ended."""
    with tempfile.TemporaryDirectory() as folder:  # Python would import from the one it is started in
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, cwd=folder, env=outside_environment({})
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), VERSION_TIMEOUT_S)
        except TimeoutError:
            raise TimeoutError(f"no answer within {VERSION_TIMEOUT_S:.0f} s") from None
        finally:
            await _end_now(process)
    return process.returncode, output


async def _end_now(process: asyncio.subprocess.Process) -> None:
    """Kill it, if it still runs, and let it go: also when whoever asked was cancelled."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):  # what it started may hold its pipe open
        await asyncio.wait_for(process.wait(), LAST_LINES_S)


class ForeignServer:
    """Made by ``start``. ``learned`` grows with its log, in which ``token``, its key, is blotted out."""

    def __init__(self, title: str, token: str, process: subprocess.Popen[bytes]) -> None:
        self.learned = Learned()
        self._title = title
        self._token = token
        self._process = process
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        title: str,
        token: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        on_line: Callable[[str], None],
    ) -> ForeignServer:
        """Start it in ``folder``, which is empty: Python would import from it. Raises LoadFailed."""
        # Not asyncio's: its wait() lasts until every pipe is closed, and what the server started holds them open.
        # Not in a thread: that goes on when this is cancelled, and would start what nobody ends.
        try:
            process = subprocess.Popen(  # noqa: ASYNC220
                command,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                cwd=folder,
                env=outside_environment(environment),
            )
        except OSError as error:
            raise LoadFailed(f"{title} cannot be started: {error}.", "Check its interpreter.") from error
        server = cls(title, token, process)
        reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        server._reading = asyncio.create_task(server._read(reader, on_line))
        return server

    async def healthy(self, url: str) -> None:
        """Wait until it answers. Raises LoadFailed or OutOfMemory, with its own last words, when it ends before."""
        ended = asyncio.create_task(self._ended())
        asking = asyncio.create_task(_ask_until_healthy(f"{url}/health", self._token))
        try:
            await asyncio.wait((ended, asking), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise await self._cause()
            await asking
        finally:
            asking.cancel()
            ended.cancel()
            await asyncio.gather(asking, ended, return_exceptions=True)

    async def wait(self) -> int:
        """Its exit code, -N when signal N ended it."""
        code = await self._ended()
        await self._last_lines()
        return code

    async def end(self, seconds: float) -> None:
        """SIGTERM, and so long to end by itself."""
        self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended(), seconds)

    async def _cause(self) -> McpError:
        await self._last_lines()
        assert self._process.returncode is not None
        return cause_of_end(self._title, signal_name(self._process.returncode), tuple(self._last))

    async def _last_lines(self) -> None:
        assert self._reading is not None
        await asyncio.wait((self._reading,), timeout=LAST_LINES_S)

    async def _ended(self) -> int:
        while (code := self._process.poll()) is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(END_EVERY_S)
        return code

    async def _read(self, reader: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
        async for said in lines_of(reader):
            line = said.replace(self._token, "***")  # SGLang writes all its settings; the last line may be shown
            self._last.append(line)
            self.learned = self.learned.after(line)
            on_line(line)


async def _ask_until_healthy(url: str, token: str) -> None:
    limit = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=limit, headers={"Authorization": f"Bearer {token}"}) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(HEALTH_EVERY_S)
