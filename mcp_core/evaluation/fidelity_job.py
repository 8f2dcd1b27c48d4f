"""The fidelity job: what is asked is known already, or is judged now and stored with its token map.

This file does not know how a Recipe is judged: here (``fidelity.py``) or by its server (``served_fidelity.py``).
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from mcp_core import hardware
from mcp_core.decision.store import Store
from mcp_core.evaluation.endpoints import Side
from mcp_core.evaluation.fidelity import judge
from mcp_core.evaluation.fidelity_plan import Plan, make_plan
from mcp_core.evaluation.known_fidelity import known_fidelity
from mcp_core.evaluation.served_fidelity import judge_servers
from mcp_core.evaluation.sides import Sides
from mcp_core.jobs import Job, Outcome
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Fidelity

__all__ = ["run"]


async def run(job: Job) -> Outcome:
    """Request: recipe; text_sha256, reference_dtype, original (a ModelRef) and fresh may be missing.

    Secrets: store_url, hub_token. The result is {fidelity, cached}.
    """
    plan = await asyncio.to_thread(_plan, job)
    if plan.path == "endpoint":
        return await _through_servers(job, plan)
    stopped = threading.Event()
    try:
        # Not on the loop: a cancellation must reach the thread while it computes.
        return await asyncio.to_thread(_answer, job, plan, stopped)
    except asyncio.CancelledError:
        stopped.set()
        raise


def _plan(job: Job) -> Plan:
    original = job.request.get("original")
    return make_plan(
        Recipe.from_dict(job.request["recipe"]),
        hardware.detect(),
        text_sha256=job.request.get("text_sha256"),
        reference_dtype=job.request.get("reference_dtype"),
        original=ModelRef.model_validate(original) if original else None,
        hub_token=job.secrets.get("hub_token"),
    )


async def _through_servers(job: Job, plan: Plan) -> Outcome:
    """The reference is a worker, the candidate the server that the Recipe starts."""
    fresh = bool(job.request.get("fresh"))
    with Store(job.secrets.get("store_url")) as store:
        known = known_fidelity(plan, store, fresh=fresh)
        if known is not None:
            return _done(known.fidelity, cached=known.since is not None)
        floor_key = plan.floor_key
        fidelity = await judge_servers(
            job,
            Sides(Side("reference", plan.reference), Side("candidate", plan.recipe), plan),
            plan.text,
            floor=store.noise_floor(floor_key) if floor_key and not fresh else None,
            keep_floor=lambda floor: store.keep_noise_floor(floor_key, floor) if floor_key else None,
        )
        key = plan.key or (await asyncio.to_thread(_plan, job)).key  # downloaded meanwhile
        fidelity = fidelity.model_copy(update={"key": key, "reference": plan.reference_title})
        store.add_fidelity(plan.recipe, fidelity)
    return _done(fidelity, cached=False)


def _answer(job: Job, plan: Plan, stopped: threading.Event) -> Outcome:
    with Store(job.secrets.get("store_url")) as store:
        known = known_fidelity(plan, store, fresh=bool(job.request.get("fresh")))
        if known is not None:
            return _done(known.fidelity, cached=known.since is not None)
        return _done(_judge_and_keep(job, plan, store, stopped), cached=False)


def _judge_and_keep(job: Job, plan: Plan, store: Store, stopped: threading.Event) -> Fidelity:
    key = plan.floor_key
    floor = store.noise_floor(key) if key and not job.request.get("fresh") else None
    judged = judge(
        plan,
        job.tell,
        stopped,
        floor=floor,
        keep_floor=lambda fresh: store.keep_noise_floor(key, fresh) if key else None,
        hub_token=job.secrets.get("hub_token"),
    )
    fidelity = judged.fidelity
    if fidelity.key is None:  # a model from the Hub has no content hash before it is here
        fidelity = fidelity.model_copy(update={"key": _plan(job).key})
    store.add_fidelity(plan.recipe, fidelity, judged.token_map)
    return fidelity


def _done(fidelity: Fidelity, *, cached: bool) -> Outcome:
    result: dict[str, Any] = {"fidelity": fidelity.model_dump(mode="json"), "cached": cached}
    return Outcome("done", result=result)
