"""Reference and candidate of a job that asks two servers the same: who they are, and each served with progress.

This file does not know what they are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mcp_core import hardware
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.evaluation.endpoints import Endpoint, Side, serve
from mcp_core.evaluation.fidelity_plan import Plan, make_plan
from mcp_core.jobs import Job
from mcp_core.recipe import KVCache, Recipe
from mcp_core.views import Progress

__all__ = ["SideReport", "Sides", "served", "sides_of"]


@dataclass(frozen=True, slots=True)
class Sides:
    """Both, and the plan that chose the reference; None where both are servers that someone else runs."""

    reference: Side
    candidate: Side
    plan: Plan | None


class SideReport:
    """Tells a job's progress while one side is at work on ``total`` things of one ``noun``."""

    def __init__(self, job: Job, side: Side, total: int, noun: str) -> None:
        self._job = job
        self._side = side
        self._total = total
        self._noun = noun

    def loading(self, progress: Progress) -> None:
        """The side's worker is being loaded."""
        message = f"{progress.stage}: {progress.message}" if progress.message else progress.stage
        self._job.tell(f"load the {self._side.name}", progress.fraction, message)

    def done(self, count: int) -> None:
        """So many are done."""
        message = f"{count} of {self._total} {self._noun}"
        self._job.tell(self._side.name, count / self._total, message)


async def sides_of(job: Job, text_sha256: str | None = None) -> Sides:
    """From a request's recipe, url and reference_url. Raises as ``make_plan``, InputError for what is no URL."""
    recipe = Recipe.from_dict(job.request["recipe"])
    url, reference_url = job.request.get("url"), job.request.get("reference_url")
    if url is not None and reference_url is not None:
        return Sides(_foreign("reference", recipe, reference_url), _foreign("candidate", recipe, url), None)
    plan = await asyncio.to_thread(
        make_plan,
        recipe if url is None else _of_the_model(recipe),
        hardware.detect(),
        text_sha256=text_sha256,
        hub_token=job.secrets.get("hub_token"),
    )
    reference = Side("reference", plan.reference)
    candidate = Side("candidate", plan.recipe)
    return Sides(
        reference if reference_url is None else _foreign("reference", recipe, reference_url),
        candidate if url is None else _foreign("candidate", recipe, url),
        plan,
    )


@asynccontextmanager
async def served(job: Job, side: Side, total: int, noun: str) -> AsyncIterator[tuple[Endpoint, SideReport]]:
    """The side's server while the block lasts, and where its progress goes."""
    report = SideReport(job, side, total, noun)
    async with serve(side, hub_token=job.secrets.get("hub_token"), on_progress=report.loading) as endpoint:
        yield endpoint, report


def _foreign(name: str, recipe: Recipe, url: str) -> Side:
    return Side(name, endpoint_recipe(recipe, url), url)


def _of_the_model(recipe: Recipe) -> Recipe:
    """What is left to plan when the candidate runs elsewhere, by an engine or scheme that may be lacking here."""
    kv = KVCache(max_context=recipe.kv.max_context)
    return Recipe(model=recipe.model, device=recipe.device, threads=recipe.threads, kv=kv)
