"""What ``bench --profile`` adds: a few steps recorded under the same load after the measurement, named in the Run.

This file does not know how steps are recorded (``evaluation/profile_job.py``) or what they say (``why``).
"""

from __future__ import annotations

import time

from mcp_core import devices
from mcp_core.commands.output import ProgressReport, note
from mcp_core.errors import InputError, McpError
from mcp_core.evaluation.profile_job import profile
from mcp_core.profile_plan import ProfileLoad, ProfilePlan
from mcp_core.progress import ProgressTracker
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.serving.client import ServerClient
from mcp_core.serving.supervisor import Worker
from mcp_core.workload import Workload

__all__ = ["load_of", "require_recordable", "with_trace"]

# Short replies let prefill come often enough to be seen; as many clients as the profiler's load takes.
_REPLY_TOKENS, _CLIENTS = 8, 256


def require_recordable(recipe: Recipe) -> None:
    """Raise InputError for an engine whose steps are not torch's."""
    if recipe.engine != "transformers":
        raise InputError(f"{recipe.engine} records no trace of its operators.", "Leave out --profile.")


async def with_trace(measured: Run, worker: Worker, report: ProgressReport) -> Run:
    """The Run with the id of its trace; without one, and a note, where recording failed: the figures stand."""
    assert worker.url is not None, "it was measured"
    tracker = ProgressTracker(time.monotonic())

    def tell(stage: str, fraction: float | None, message: str) -> None:
        tracker.update(stage, fraction, message, time.monotonic())
        report(tracker.view(time.monotonic()))

    try:
        with devices.acquire(
            worker.recipe.device, "measure", "mcp-core bench --profile", besides=[worker.lease.holder.id]
        ):
            async with ServerClient(worker.url, worker.token, control_url=worker.control_url) as client:
                load = load_of(measured.workload)
                kept = await profile(client, ProfilePlan(), load, tell, run_id=measured.id)
    except McpError as error:
        note(f"no profile: {error.message}")
        return measured
    return measured.model_copy(update={"trace_id": kept[0].id})


def load_of(workload: Workload) -> ProfileLoad:
    """As many clients with prompts as long as the Workload's, mean."""
    prompts = workload.prompt_tokens
    return ProfileLoad(
        concurrency=workload.at_once(_CLIENTS),
        prompt_tokens=(prompts.min + prompts.max) // 2,
        output_tokens=min(workload.output_tokens.max, _REPLY_TOKENS),
    )
