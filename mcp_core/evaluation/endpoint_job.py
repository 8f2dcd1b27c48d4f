"""The job ``endpoint-fidelity``: a running server's prompt log-probabilities against a reference's; kept.

This file does not know how servers are judged (``served_fidelity.py``).
"""

from __future__ import annotations

import asyncio

from mcp_core import texts
from mcp_core.decision.store import Store
from mcp_core.evaluation.fidelity_plan import require_unseen
from mcp_core.evaluation.fidelity_text import builtin_evaluation
from mcp_core.evaluation.served_fidelity import judge_servers
from mcp_core.evaluation.sides import sides_of
from mcp_core.jobs import Job, Outcome
from mcp_core.recipe import Recipe

__all__ = ["run"]


async def run(job: Job) -> Outcome:
    """Request: recipe, url, reference_url, text_sha256 (null: the built-in set). The answer is {fidelity}."""
    chosen = job.request.get("text_sha256")
    text = builtin_evaluation() if chosen is None else texts.get(chosen)
    # The candidate runs elsewhere, so no plan is made of its scheme.
    await asyncio.to_thread(require_unseen, Recipe.from_dict(job.request["recipe"]), text)
    sides = await sides_of(job, chosen)
    with Store(job.secrets.get("store_url")) as store:  # opened first: one that cannot be used is known at once
        fidelity = await judge_servers(job, sides, text)
        store.add_fidelity(sides.candidate.recipe, fidelity)
    return Outcome("done", result={"fidelity": fidelity.model_dump(mode="json")})
