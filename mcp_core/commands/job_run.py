"""A job run in the foreground of a command: the same child process as the app's, followed until it ends.

This file does not know what the job computes (``jobs.VERBS``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from mcp_core import devices, paths
from mcp_core.child_process import ChildProcess, signal_name
from mcp_core.commands.arguments import hub_token
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport
from mcp_core.errors import Cancelled, McpError, error_from
from mcp_core.jobs import EVENTS, REQUEST, RESULT, write_json
from mcp_core.progress import ProgressTracker
from mcp_core.results import new_run_id

__all__ = ["run_job"]

_FOLLOW_S = 0.25
_CANCEL_GRACE_S = 5.0


def run_job(
    verb: str,
    title: str,
    request: dict[str, Any],
    *,
    device: str | None,
    progress_as_json: bool = False,
) -> dict[str, Any]:
    """Run one job on ``device`` (None: it needs none) and return its answer. It is given the Hub token, if any.

    Raises Busy while others use the device, Cancelled when it is stopped by Ctrl-C, else the job's own error.
    """
    report = ProgressReport(as_json=progress_as_json)
    return run_until_stopped(_run(verb, title, request, device, {"hub_token": hub_token()}, report))


async def _run(
    verb: str,
    title: str,
    request: dict[str, Any],
    device: str | None,
    secrets: dict[str, Any],
    report: ProgressReport,
) -> dict[str, Any]:
    folder = paths.home("jobs", new_run_id())
    write_json(folder / REQUEST, request)
    with devices.acquire(device, "measure", title) if device else contextlib.nullcontext():
        code = await _follow(verb, folder, secrets, report)
    return _answer(folder, code)


async def _follow(verb: str, folder: Path, secrets: dict[str, Any], report: ProgressReport) -> int:
    """Start the child and tell its progress until it has ended; its exit code."""
    with (folder / "log.txt").open("wb") as log:
        command = (sys.executable, "-m", "mcp_core.jobs", verb, str(folder))
        child = await ChildProcess.spawn(command, json.dumps(secrets), output=log)
    events = _Events(folder / EVENTS, report)
    try:
        while not await child.ends_within(_FOLLOW_S):
            events.tell()
    except asyncio.CancelledError:
        await child.terminate(_CANCEL_GRACE_S)
        raise Cancelled(f"{verb} was stopped.") from None
    code = await child.wait()
    await child.close()
    events.tell()
    return code


class _Events:
    """What a job adds to its events.jsonl, told as progress."""

    def __init__(self, path: Path, report: ProgressReport) -> None:
        self._path = path
        self._report = report
        self._read = 0
        self._tracker = ProgressTracker(time.time())

    def tell(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines, end, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(end)
        for line in lines.splitlines():
            event = json.loads(line)
            self._tracker.update(event["stage"], event["fraction"], event["message"], event["at_s"])
            self._report(self._tracker.view(time.time()))


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
