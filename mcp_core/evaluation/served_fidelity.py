"""Two servers judged, one after the other: each scores the same texts, the reference also with another kernel.

That is how a Recipe of another engine is judged, through the server that it is served by, and what runs at a URL.
This file does not know what is computed of the scores (``endpoint_fidelity.py``) or where answers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mcp_core.documents import Document, TextSet
from mcp_core.engines import FOREIGN
from mcp_core.errors import Cancelled, McpError, Unscorable
from mcp_core.evaluation import endpoint_fidelity
from mcp_core.evaluation.endpoint_fidelity import Scored
from mcp_core.evaluation.endpoints import Side, serve
from mcp_core.evaluation.fidelity_metrics import figures
from mcp_core.evaluation.fidelity_plan import screening
from mcp_core.evaluation.prompt_scores import Dialect, dialect_of
from mcp_core.evaluation.sides import Sides, served
from mcp_core.jobs import Job
from mcp_core.models.attention_support import WITHOUT_SDPA
from mcp_core.results import Fidelity, Mean

__all__ = ["FLOOR_DOCUMENTS", "STAGES", "judge_servers"]

# Of a job's progress: each from 0 to 1, the last only where the floor is not known yet.
STAGES = ("reference", "candidate", "noise floor")

# The noise floor is measured on so many documents, spread over the set.
FLOOR_DOCUMENTS = 8


@dataclass(frozen=True, slots=True)
class _Turn:
    """What one server said, and the form in which it was asked."""

    scored: Scored
    dialect: Dialect


async def judge_servers(
    job: Job,
    sides: Sides,
    text: TextSet,
    *,
    floor: Mean | None = None,
    keep_floor: Callable[[Mean], None] = lambda _: None,
) -> Fidelity:
    """The answer; ``floor`` is known from an earlier time, else it is measured, and ``keep_floor`` hears of it.

    A server that gives no prompt log-probabilities is an answer, too. Raises InputError for a text or tokenizer
    that cannot be compared, Cancelled, and what starting a worker raises.
    """
    told = sides.plan.without_measuring() if sides.plan is not None else None
    if told is not None and told.status == "not-measurable":
        return endpoint_fidelity.not_measurable(sides.candidate, sides.reference, text, told.reason)
    documents = endpoint_fidelity.passages(text)
    try:
        reference, candidate, dialect = await _both(job, sides, documents)
    except Unscorable as error:
        return endpoint_fidelity.not_measurable(sides.candidate, sides.reference, text, error.message)
    compared = endpoint_fidelity.compare(documents, reference, candidate)
    lacking: tuple[str, ...] = ()
    if floor is None:
        floor, lacking = await _floor_or_why(job, sides, dialect, dict(zip(documents, reference, strict=True)))
        if floor is not None:
            keep_floor(floor)
    measured = endpoint_fidelity.fidelity(sides.candidate, sides.reference, text, compared, dialect, floor)
    general = sides.plan.notes(measured.documents) if sides.plan is not None else screening(measured.documents)
    return measured.model_copy(update={"notes": (*general, *measured.notes, *lacking)})


async def _both(job: Job, sides: Sides, documents: Sequence[Document]) -> tuple[Scored, Scored, Dialect]:
    """What reference and candidate say, in the form that both understand. Raises Unscorable.

    A server of another engine is the first: what it understands is known once it runs.
    """
    dialect = await _common_dialect(sides)
    if _speaks_its_own(sides.candidate):
        candidate = await _score(job, sides.candidate, dialect, documents)
        reference = await _score(job, sides.reference, candidate.dialect, documents)
        return reference.scored, candidate.scored, candidate.dialect
    reference = await _score(job, sides.reference, dialect, documents)
    candidate = await _score(job, sides.candidate, dialect, documents)
    return reference.scored, candidate.scored, dialect


async def _common_dialect(sides: Sides) -> Dialect:
    """What every server that already runs understands; ours understands any. Raises Unscorable."""
    known = []
    for side in (sides.reference, sides.candidate):
        if side.url is not None:
            async with serve(side) as endpoint:
                known.append(await dialect_of(endpoint))
    return endpoint_fidelity.common(known)


def _speaks_its_own(side: Side) -> bool:
    return side.url is None and side.recipe.engine in FOREIGN


async def _score(job: Job, side: Side, dialect: Dialect, documents: Sequence[Document]) -> _Turn:
    async with served(job, side, len(documents), "documents") as (endpoint, report):
        own = dialect
        if side.url is not None or _speaks_its_own(side):
            own = await dialect_of(endpoint)
            dialect = endpoint_fidelity.common([dialect, own])
        asked = replace(dialect, by_position=own.by_position)
        return _Turn(await endpoint_fidelity.score_all(endpoint, asked, documents, report.done), dialect)


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
    recipe = sides.reference.recipe.replace({"attention": attention})
    again = await _score(job, replace(sides.reference, name="noise floor", recipe=recipe), dialect, few)
    compared = endpoint_fidelity.compare(few, [known[each] for each in few], again.scored)
    if not compared:
        return None
    kl = figures([each.scores for each in compared]).kl
    return Mean(mean=kl.mean, se=kl.mean_se)
