"""ChildProcess: a process in a group of its own that ends with this one, because it watches its stdin.

This file does not know what the process does. Its secrets go in by the first line of stdin: never by the
environment or the command line, which others can read.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["ChildProcess", "lines_of", "oom_kills", "signal_name"]

LINE_LIMIT_CHARS = 1_000_000
# cuda:1 is then the device that NVML numbers 1; else CUDA counts the fastest first.
_NUMBERING = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_READ_BYTES = 65_536

# Where the kernel counts the processes it ended for lack of memory: host, cgroup v2, cgroup v1.
_OOM_COUNTERS = (
    Path("/proc/vmstat"),
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


class _Protocol(SubprocessStreamProtocol):
    """Tells when the process itself has ended.

    asyncio's own ``Process.wait`` also waits until every pipe is closed (Python 3.11, 3.12), and a grandchild
    that lives on holds them open: the death of a worker would go unnoticed.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class ChildProcess:
    """One running child. Its stdin stays open as long as this process lives and has not let go of it."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._group_gone = False

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        first_line: str,
        *,
        env: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
    ) -> ChildProcess:
        """Start it and send the first line. Both outputs go to ``output``, else to pipes. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(
            lambda: _Protocol(_READ_BYTES, loop),
            *command,
            stdin=PIPE,
            stdout=output or PIPE,
            stderr=output or PIPE,
            env=dict(os.environ) | _NUMBERING | dict(env or {}),
            start_new_session=True,
        )
        child = cls(transport, protocol)
        child._first_to_go_when_memory_ends()
        assert protocol.stdin is not None
        protocol.stdin.write(first_line.encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # it has ended already; wait() tells
            await protocol.stdin.drain()
        return child

    @property
    def pid(self) -> int:
        """Process id, and id of its group."""
        return self._transport.get_pid()

    @property
    def stdout(self) -> asyncio.StreamReader:
        """Its standard output, when it is a pipe."""
        assert self._protocol.stdout is not None
        return self._protocol.stdout

    @property
    def stderr(self) -> asyncio.StreamReader:
        """Its standard error, when it is a pipe."""
        assert self._protocol.stderr is not None
        return self._protocol.stderr

    async def wait(self) -> int:
        """Its exit code, -N when signal N ended it; whatever is left of its group is killed."""
        await self._protocol.exited.wait()
        code = self._transport.get_returncode()
        assert code is not None
        self._signal(signal.SIGKILL)
        self._group_gone = True  # from here on its id may be given to others
        return code

    async def ends_within(self, seconds: float) -> bool:
        """Whether it ended by itself in that time."""
        try:
            await asyncio.wait_for(self._protocol.exited.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close its pipes, whoever else may hold them; to be called once it has ended and was read."""
        self._transport.close()
        await asyncio.sleep(0)  # the pipes close in the loop's next round

    def let_go(self) -> None:
        """Close its stdin, which tells it to end."""
        if self._protocol.stdin is not None:
            self._protocol.stdin.close()

    async def terminate(self, grace_s: float) -> None:
        """Let go, SIGTERM to the group, SIGKILL after ``grace_s``."""
        self.let_go()
        if not self._protocol.exited.is_set():
            self._signal(signal.SIGTERM)
            if not await self.ends_within(grace_s):
                self._signal(signal.SIGKILL)
        await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._group_gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _first_to_go_when_memory_ends(self) -> None:
        """Let the kernel end this child before the app, or anything else of the user's."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text("1000")


async def lines_of(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Every line as it comes; a progress bar's carriage return ends a line too, and no line grows forever."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while data := await reader.read(_READ_BYTES):
        *lines, rest = re.split(r"[\r\n]+", rest + decoder.decode(data))
        for line in lines:
            if line:
                yield line
        if len(rest) > LINE_LIMIT_CHARS:
            yield rest
            rest = ""
    if rest:
        yield rest


def oom_kills(counters: Sequence[Path] = _OOM_COUNTERS) -> int:
    """How many processes the kernel has ended for lack of memory, as far as this one can see."""
    found = 0
    for path in counters:
        with contextlib.suppress(OSError):
            found += sum(int(count) for count in re.findall(r"^oom_kill (\d+)", path.read_text(), re.MULTILINE))
    return found


def signal_name(code: int) -> str:
    """``exit code 1`` or ``signal SIGSEGV`` for what ``wait`` returned."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
