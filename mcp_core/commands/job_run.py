"""A job in the foreground of a command: the same child process as the app's, its progress on stderr.

This file does not know what the job computes (``jobs.VERBS``) or how it is followed (``job_child.py``).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from mcp_core import devices
from mcp_core.commands.arguments import hub_token
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport
from mcp_core.job_child import run_child
from mcp_core.progress import ProgressTracker

__all__ = ["run_job"]


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
    tracker = ProgressTracker(time.time())

    def tell(event: dict[str, Any]) -> None:
        tracker.update(event["stage"], event["fraction"], event["message"], event["at_s"])
        report(tracker.view(time.time()))

    async def held() -> dict[str, Any]:
        with devices.acquire(device, "measure", title) if device else contextlib.nullcontext():
            return await run_child(verb, request, {"hub_token": hub_token()}, tell)

    return run_until_stopped(held())
