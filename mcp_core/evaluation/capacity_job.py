"""The capacity of one running server, each point a Run in the store; as a job, and for a command.

This file does not know which loads are tried (``capacity.py``) or how one is measured (``benchmark.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mcp_core.decision.store import Store
from mcp_core.errors import Cancelled
from mcp_core.evaluation.benchmark import Keep, measure
from mcp_core.evaluation.capacity import Capacity, measure_capacity
from mcp_core.evaluation.loadgen import OnProgress
from mcp_core.goal import Goal
from mcp_core.hardware import Hardware, detect
from mcp_core.jobs import Job, Outcome
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run
from mcp_core.views import Progress
from mcp_core.workload import Workload

__all__ = ["Served", "run", "search"]


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and what it serves."""

    url: str
    token: str | None
    control_url: str | None
    recipe: Recipe
    hardware: Hardware


async def search(
    served: Served,
    workload: Workload,
    goal: Goal,
    *,
    keep: Keep,
    on_progress: OnProgress,
    most: float | None = None,
    budget_s: float | None = None,
) -> Capacity:
    """Find the server's capacity by the Goal's latency limits and share of failures; ``keep`` is called for each
    point. What is still being measured after ``budget_s`` is cut. Raises as ``measure_capacity``; cancelled, it
    returns what was found until then."""
    report = _Report(on_progress)

    async def at(load: Workload) -> tuple[Run, Sequence[RequestRecord]]:
        kept: list[Sequence[RequestRecord]] = []

        def note(measured: Run, records: Sequence[RequestRecord], telemetry: Any) -> None:
            kept.append(records)
            keep(measured, records, telemetry)

        measured = await measure(
            served.url,
            served.token,
            served.recipe,
            load,
            served.hardware,
            on_progress=report.of_point,
            keep=note,
            control_url=served.control_url,
        )
        return measured, kept[0]

    return await measure_capacity(
        at,
        workload,
        goal.slo,
        failures_max=goal.failures_max,
        most=most,
        budget_s=budget_s,
        cuts=True,
        on_progress=report.of_search,
    )


class _Report:
    """How far the search is, with what its present point does."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._search = Progress("capacity", None, "", 0.0, None)

    def of_search(self, progress: Progress) -> None:
        self._search = progress
        self._on_progress(progress)

    def of_point(self, progress: Progress) -> None:
        """Its own time is added to the search's, which is told at the beginning of a point."""
        elapsed_s = self._search.elapsed_s + progress.elapsed_s
        message = f"{self._search.message}: {progress.stage}, {progress.message}"
        self._on_progress(dataclasses.replace(self._search, message=message, elapsed_s=elapsed_s))


async def run(job: Job) -> Outcome:
    """Request: worker_url, control_url, recipe, workload, goal, most, budget_s. Secrets: token, store_url. The
    answer is a Capacity."""
    request = job.request
    served = Served(
        request["worker_url"],
        job.secrets.get("token"),
        request.get("control_url"),
        Recipe.from_dict(request["recipe"]),
        detect(),
    )
    with Store(job.secrets.get("store_url")) as store:  # opened first: one that cannot be used is known at once
        found = await search(
            served,
            Workload.from_dict(request["workload"]),
            Goal.from_dict(request["goal"]),
            keep=store.add,
            on_progress=job.report,
            most=request.get("most"),
            budget_s=request.get("budget_s"),
        )
    state: Literal["done", "cancelled"] = "cancelled" if found.ended == "cancelled" else "done"
    failure = (
        Cancelled("The search was stopped.", "Its points are kept.").as_dict() if state == "cancelled" else None
    )
    return Outcome(state, failure, found.model_dump(mode="json"))
