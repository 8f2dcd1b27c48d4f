"""A job followed by whoever started it, until its process has ended: not queued, and not found again later.

Whoever starts it holds the device. This file does not know what the job computes (``jobs.VERBS``), nor the jobs
that the app queues (``job_registry.py``).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcp_core import paths
from mcp_core.child_process import ChildProcess, signal_name
from mcp_core.errors import Cancelled, McpError, error_from
from mcp_core.jobs import EVENTS, REQUEST, RESULT, write_json
from mcp_core.results import new_run_id

__all__ = ["JOB_COMMAND", "run_child"]

JOB_COMMAND = (sys.executable, "-m", "mcp_core.jobs")
# Given {at_s, stage, fraction, message}.
OnEvent = Callable[[dict[str, Any]], None]
_FOLLOW_S = 0.25
_CANCEL_GRACE_S = 5.0


async def run_child(
    verb: str,
    request: Mapping[str, Any],
    secrets: Mapping[str, Any],
    on_event: OnEvent,
    command: Sequence[str] = JOB_COMMAND,
) -> dict[str, Any]:
    """Run one job in a process of its own and return its answer. ``on_event`` is given its progress.

    Raises Cancelled when this task is, after the job has ended, else the job's own error.
    """
    folder = paths.home("jobs", new_run_id())
    write_json(folder / REQUEST, dict(request))
    with (folder / "log.txt").open("wb") as log:
        child = await ChildProcess.spawn([*command, verb, str(folder)], json.dumps(dict(secrets)), output=log)
    events = _Events(folder / EVENTS, on_event)
    try:
        while not await child.ends_within(_FOLLOW_S):
            events.tell()
    except asyncio.CancelledError:
        await child.terminate(_CANCEL_GRACE_S)
        raise Cancelled(f"{verb} was stopped.") from None
    code = await child.wait()
    await child.close()
    events.tell()
    return _answer(folder, code)


class _Events:
    """What a job adds to its events.jsonl."""

    def __init__(self, path: Path, on_event: OnEvent) -> None:
        self._path = path
        self._on_event = on_event
        self._read = 0

    def tell(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines, end, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(end)
        for line in lines.splitlines():
            self._on_event(json.loads(line))


def _answer(folder: Path, code: int) -> dict[str, Any]:
    try:
        document = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError) as error:
        raise McpError(
            f"The job's process ended without a result ({signal_name(code)}).", f"Its log: {folder / 'log.txt'}"
        ) from error
    if document["state"] != "done":
        raise error_from(document["failure"])
    result: dict[str, Any] = document["result"]
    return result
