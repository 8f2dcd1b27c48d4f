"""Worker: what is known of one worker process from outside, and how its end is told to people.

This file does not know how the process is started or asked anything (``supervisor.py``).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from mcp_core import paths
from mcp_core.child_process import ChildProcess, lines_of, signal_name
from mcp_core.devices import Lease
from mcp_core.errors import McpError, OutOfMemory, WorkerDied
from mcp_core.progress import ProgressTracker
from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.views import Progress

if TYPE_CHECKING:
    from mcp_core.serving.client import ServerClient

__all__ = ["Worker", "WorkerLog", "death_of"]

Status = Literal["starting", "ready", "failed", "died", "stopped"]

LOG_TAIL_LINES = 200
LOG_FILE_BYTES = 2_000_000
LOG_FILES_KEPT = 50


class WorkerLog:
    """What a worker writes to stderr: the last lines in memory, more in a file of limited size.

    ``hidden`` texts (tokens) are blotted out before anything is kept.
    """

    def __init__(self, name: str, hidden: tuple[str, ...] = ()) -> None:
        self.tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self.path = paths.home("logs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}.log"
        self._hidden = hidden
        _drop_old_logs(keep=LOG_FILES_KEPT)
        self._file = RotatingFileHandler(self.path, maxBytes=LOG_FILE_BYTES, backupCount=1, encoding="utf-8")

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Keep every line until the worker's end of the pipe closes."""
        async for line in lines_of(reader):
            self.add(line)

    def add(self, line: str) -> None:
        """Keep one line."""
        for text in self._hidden:
            line = line.replace(text, "***")
        self.tail.append(line)
        self._file.emit(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Close the file; the tail stays."""
        self._file.close()


def _drop_old_logs(keep: int) -> None:
    files = sorted(paths.home("logs").glob("*-worker-*.log*"))  # their names begin with the time
    for file in files[: max(0, len(files) - keep)]:
        file.unlink(missing_ok=True)


@dataclass(eq=False)
class Worker:
    """One worker. Only the Supervisor changes it, on its loop."""

    id: str
    recipe: Recipe
    token: str = field(repr=False)
    lease: Lease
    log: WorkerLog
    on_progress: Callable[[Progress], None] | None = None
    status: Status = "starting"
    pid: int | None = None
    url: str | None = None
    control_url: str | None = None
    failure: Failure | None = None
    state: dict[str, Any] = field(default_factory=dict)
    client: ServerClient | None = None
    process: ChildProcess | None = None
    life: asyncio.Task[None] | None = None
    spawned: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # ready, or never will be
    _tracker: ProgressTracker = field(
        default_factory=lambda: ProgressTracker(time.monotonic(), message="Starting the worker process.")
    )

    @property
    def title(self) -> str:
        """The model's name as the worker gives it, before that its id, of a path its last part."""
        model = self.recipe.model
        known = PurePath(model.id).name if model.source in ("folder", "gguf") else model.id
        return str(self.state.get("title") or known)

    @property
    def progress(self) -> Progress | None:
        """How far loading is; None once it is over."""
        return self._tracker.view(time.monotonic()) if self.status == "starting" else None

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log."""
        return tuple(self.log.tail)

    def report(self, stage: str, fraction: float | None, message: str) -> None:
        """Take one progress line."""
        self._tracker.update(stage, fraction, message, time.monotonic())
        if self.on_progress is not None:
            self.on_progress(self._tracker.view(time.monotonic()))

    def greeted(self, state: dict[str, Any]) -> None:
        """It has told its state: ready, unless it was stopped meanwhile. Raises RecipeError for no Recipe in it."""
        if self.status not in ("starting", "ready"):
            return
        self.recipe = Recipe.from_dict(state.get("recipe"))
        self.state = state
        self.status = "ready"
        self.settled.set()

    def end(self, status: Literal["failed", "died", "stopped"], error: McpError | None = None) -> None:
        """It is over; the first reason is the one that counts."""
        if self.status in ("starting", "ready"):
            self.status = status
            self.failure = Failure.of(error) if error else None
        if status != "stopped":
            self.settled.set()


def death_of(worker: Worker, code: int, *, oom: bool) -> McpError:
    """Why a worker ended that nobody asked to. ``oom``: the kernel has ended something for lack of memory."""
    when = "while loading" if worker.status == "starting" else "while serving"
    if code == -signal.SIGKILL and oom:
        return OutOfMemory(
            f"The worker was probably ended by the kernel {when}, for lack of memory.",
            "Choose a smaller model, dtype, scheme or kv.max_context, or unload another model.",
        )
    hint = f"Load it again. Its log: {worker.log.path}"
    if code == -signal.SIGKILL:
        hint = f"If nobody ended it, memory may have run out: choose something smaller. Log: {worker.log.path}"
    last = f" It said: {worker.log.tail[-1][:200]}" if code > 0 and worker.log.tail else ""
    return WorkerDied(f"The worker ended by itself {when} ({signal_name(code)}).{last}", hint)
