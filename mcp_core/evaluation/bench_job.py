"""The bench job: a running worker measured, and the Run stored, whatever came of it.

This file does not know how a Run is measured (``benchmark.py``).
"""

from __future__ import annotations

from typing import Literal

from mcp_core.decision.store import Store
from mcp_core.evaluation.benchmark import measure
from mcp_core.hardware import detect
from mcp_core.jobs import Job, Outcome
from mcp_core.recipe import Recipe
from mcp_core.workload import Workload

__all__ = ["run"]


async def run(job: Job) -> Outcome:
    """Request: worker_url, control_url, recipe, workload. Secrets: token, store_url. The result is the Run."""
    with Store(job.secrets.get("store_url")) as store:
        measured = await measure(
            job.request["worker_url"],
            job.secrets.get("token"),
            Recipe.from_dict(job.request["recipe"]),
            Workload.from_dict(job.request["workload"]),
            detect(),
            on_progress=job.report,
            keep=store.add,
            control_url=job.request.get("control_url"),
        )
    state: Literal["done", "failed", "cancelled"] = "done" if measured.status == "ok" else "failed"
    if measured.status == "cancelled":
        state = "cancelled"
    failure = measured.failure.model_dump() if measured.failure else None
    return Outcome(state, failure, measured.model_dump(mode="json"))
