"""The job ``endpoint-fidelity``: a running server's prompt log-probabilities against a reference's; kept.

The reference is scored first and is gone before the candidate's turn. This file does not know what is computed of
the scores (``endpoint_fidelity.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from mcp_core import texts
from mcp_core.decision.store import Store
from mcp_core.documents import Document, TextSet
from mcp_core.errors import Cancelled, McpError, Unscorable
from mcp_core.evaluation import endpoint_fidelity
from mcp_core.evaluation.endpoint_fidelity import Scored
from mcp_core.evaluation.endpoints import Side, serve
from mcp_core.evaluation.fidelity_metrics import figures
from mcp_core.evaluation.fidelity_plan import require_unseen, screening
from mcp_core.evaluation.fidelity_text import builtin_evaluation
from mcp_core.evaluation.prompt_scores import Dialect, dialect_of
from mcp_core.evaluation.sides import Sides, served, sides_of
from mcp_core.jobs import Job, Outcome
from mcp_core.models.attention_support import WITHOUT_SDPA
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity, Mean

__all__ = ["run"]

# The noise floor is measured on so many documents, spread over the set.
FLOOR_DOCUMENTS = 8


async def run(job: Job) -> Outcome:
    """Request: recipe, url, reference_url, text_sha256 (null: the built-in set). The answer is {fidelity}."""
    chosen = job.request.get("text_sha256")
    text = builtin_evaluation() if chosen is None else texts.get(chosen)
    # The candidate runs elsewhere, so no plan is made of its scheme.
    await asyncio.to_thread(require_unseen, Recipe.from_dict(job.request["recipe"]), text)
    sides = await sides_of(job, chosen)
    with Store(job.secrets.get("store_url")) as store:  # opened first: one that cannot be used is known at once
        fidelity = await _judge(job, sides, text)
        store.add_fidelity(sides.candidate.recipe, fidelity)
    return Outcome("done", result={"fidelity": fidelity.model_dump(mode="json")})


async def _judge(job: Job, sides: Sides, text: TextSet) -> Fidelity:
    told = sides.plan.without_measuring() if sides.plan is not None else None
    if told is not None and told.status == "not-measurable":
        return endpoint_fidelity.not_measurable(sides.candidate, sides.reference, text, told.reason)
    documents = endpoint_fidelity.passages(text)
    try:
        dialect = await _common_dialect(sides)
        scored = [await _score(job, side, dialect, documents) for side in (sides.reference, sides.candidate)]
    except Unscorable as error:
        return endpoint_fidelity.not_measurable(sides.candidate, sides.reference, text, error.message)
    compared = endpoint_fidelity.compare(documents, *scored)
    floor, lacking = await _floor_or_why(job, sides, dialect, dict(zip(documents, scored[0], strict=True)))
    measured = endpoint_fidelity.fidelity(sides.candidate, sides.reference, text, compared, dialect, floor)
    general = sides.plan.notes(measured.documents) if sides.plan is not None else screening(measured.documents)
    return measured.model_copy(update={"notes": (*general, *measured.notes, *lacking)})


async def _common_dialect(sides: Sides) -> Dialect:
    """What every server that already runs understands; ours understands any. Raises Unscorable."""
    known = []
    for side in (sides.reference, sides.candidate):
        if side.url is not None:
            async with serve(side) as endpoint:
                known.append(await dialect_of(endpoint))
    return endpoint_fidelity.common(known)


async def _score(job: Job, side: Side, dialect: Dialect, documents: Sequence[Document]) -> Scored:
    async with served(job, side, len(documents), "documents") as (endpoint, report):
        return await endpoint_fidelity.score_all(endpoint, dialect, documents, report.done)


async def _floor_or_why(
    job: Job, sides: Sides, dialect: Dialect, known: dict[Document, endpoint_fidelity.Found]
) -> tuple[Mean | None, tuple[str, ...]]:
    """The floor, or None and a note: a worker that fails now must not cost the answer that is there already."""
    try:
        return await _floor(job, sides, dialect, known), ()
    except Cancelled:
        raise
    except McpError as error:
        return None, (f"no noise floor: {error.message}",)


async def _floor(
    job: Job, sides: Sides, dialect: Dialect, known: dict[Document, endpoint_fidelity.Found]
) -> Mean | None:
    """The reference's distance to itself with another attention kernel, on some documents, by the same top-k lists:
    the floor of whole vocabularies would be another quantity. None for a reference that someone else runs, and for
    a model that has one kernel only.
    """
    if sides.reference.url is not None or sides.plan is None:
        return None
    if sides.plan.resolved.architecture.model_type in WITHOUT_SDPA:
        return None
    documents = list(known)
    few = documents[:: -(-len(documents) // FLOOR_DOCUMENTS)]
    attention = "sdpa" if sides.reference.recipe.attention == "eager" else "eager"
    again = replace(
        sides.reference, name="noise floor", recipe=sides.reference.recipe.replace({"attention": attention})
    )
    compared = endpoint_fidelity.compare(few, [known[each] for each in few], await _score(job, again, dialect, few))
    if not compared:
        return None
    kl = figures([each.scores for each in compared]).kl
    return Mean(mean=kl.mean, se=kl.mean_se)
