"""Fidelity of a running server: its prompt log-probabilities against a reference server's, on the same tokens.

Perplexity, top-1 agreement and RMS dp are exact. KL is over the tokens that both servers list, the rest as one: a
lower bound, and how much it leaves out is stated. This file does not know how a server is asked
(``prompt_scores.py``) or what the figures mean (``fidelity_metrics.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mcp_core.documents import Document, TextSet
from mcp_core.errors import ContextTooLong, InputError
from mcp_core.evaluation.endpoints import Endpoint, Side
from mcp_core.evaluation.fidelity_metrics import DocumentScores, figures, over_floor, strata_of
from mcp_core.evaluation.fidelity_text import LONG_CONTEXT, LONG_PREFIX_TOKENS
from mcp_core.evaluation.prompt_scores import Dialect, PromptScores, score
from mcp_core.evaluation.top_k import divergence, same_best
from mcp_core.results import Fidelity, Mean, TopKTruncation

__all__ = ["Found", "Scored", "common", "compare", "fidelity", "not_measurable", "passages", "score_all"]

# Scores of one document, None where it is longer than the server's context; and of several, in their order.
Found = PromptScores | None
Scored = Sequence[Found]
OnDocument = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Compared:
    """One document through both servers; ``outside`` is the reference's mass that no shared token has."""

    scores: DocumentScores
    outside: float


def passages(text: TextSet) -> tuple[Document, ...]:
    """Its plain passages: a server's chat template is known to it alone. Raises InputError when there is none."""
    plain = tuple(document for document in text.documents if document.text is not None)
    if not plain:
        raise InputError(
            f'"{text.name}" has chats only; a server is judged on plain passages.',
            "Give a text file; chats are read where the Recipe is of engine transformers and without --url.",
        )
    return plain


def common(dialects: Sequence[Dialect]) -> Dialect:
    """The form that all of these servers understand; ours understands any."""
    if not dialects:
        return Dialect(20, 0, as_ids=True)
    return Dialect(
        min(each.top_k for each in dialects),
        max(each.max_tokens for each in dialects),
        as_ids=all(each.as_ids for each in dialects),
    )


async def score_all(
    endpoint: Endpoint, dialect: Dialect, documents: Sequence[Document], on_document: OnDocument = lambda _: None
) -> Scored:
    """Every document's tokens by this server. Raises as ``prompt_scores.score``, save for one that is too long."""
    scored: list[PromptScores | None] = []
    for document in documents:
        try:
            scored.append(await score(endpoint, dialect, document.text or ""))
        except ContextTooLong:
            scored.append(None)
        on_document(len(scored))
    return scored


def compare(documents: Sequence[Document], reference: Scored, candidate: Scored) -> list[_Compared]:
    """Both servers' scores, document by document; those that one of them could not take are left out.

    Raises InputError, naming the first token, when the two have cut a text into different tokens.
    """
    pairs = zip(documents, reference, candidate, strict=True)
    return [
        _compared(each, ours, theirs)
        for each, ours, theirs in pairs
        if ours and theirs and len(ours.tokens) > _scored_from(each)
    ]


def fidelity(
    candidate: Side,
    reference: Side,
    text: TextSet,
    compared: Sequence[_Compared],
    dialect: Dialect,
    floor: Mean | None = None,
) -> Fidelity:
    """The answer. Raises InputError when no document could be scored by both."""
    if not compared:
        raise InputError(f'No passage of "{text.name}" fits both servers\' contexts.', "Give shorter passages.")
    documents = [each.scores for each in compared]
    found = figures(documents)
    outside = float(np.average([each.outside for each in compared], weights=[len(each.kl) for each in documents]))
    return Fidelity(
        status="measured",
        key=_key(candidate, reference, text),
        numerics_key=candidate.recipe.numerics_key,
        reference=reference.title,
        path="endpoint",
        engine=candidate.recipe.engine,
        text_sha256=text.sha256,
        text_name=text.name,
        documents=found.documents,
        tokens=found.tokens,
        perplexity=found.perplexity,
        reference_perplexity=found.reference_perplexity,
        kl=found.kl,
        top1=found.top1,
        rms_dp=found.rms_dp,
        noise_floor=floor,
        kl_over_floor=None if floor is None else over_floor(found.kl.mean, floor.mean),
        truncation=TopKTruncation(top_k=dialect.top_k, tail_mass=outside),
        strata=strata_of(documents),
        notes=tuple(_notes(text, compared, dialect, outside)),
    )


def not_measurable(candidate: Side, reference: Side, text: TextSet, reason: str) -> Fidelity:
    """The answer for a server that gives no prompt log-probabilities."""
    return Fidelity(
        status="not-measurable",
        reason=reason,
        key=_key(candidate, reference, text),
        numerics_key=candidate.recipe.numerics_key,
        reference=reference.title,
        path="endpoint",
        engine=candidate.recipe.engine,
        text_sha256=text.sha256,
        text_name=text.name,
    )


def _compared(document: Document, reference: PromptScores, candidate: PromptScores) -> _Compared:
    _require_same_tokens(document, reference.tokens, candidate.tokens)
    first = _scored_from(document)
    pairs = list(zip(reference.top, candidate.top, strict=True))[first:]
    found = [divergence(*each) for each in pairs]
    return _Compared(
        DocumentScores(
            stratum=document.stratum,
            nll_reference=-np.array(reference.logprobs[first:], dtype=np.float64),
            nll_candidate=-np.array(candidate.logprobs[first:], dtype=np.float64),
            kl=np.array([kl for kl, _ in found]),
            same_top=np.array([same_best(*each) for each in pairs]),
        ),
        float(np.mean([outside for _, outside in found])),
    )


def _scored_from(document: Document) -> int:
    """Index of the first token that counts: as where the whole vocabulary is compared."""
    return LONG_PREFIX_TOKENS if document.stratum == LONG_CONTEXT else 1


def _require_same_tokens(document: Document, reference: Sequence[str], candidate: Sequence[str]) -> None:
    if tuple(reference) == tuple(candidate):
        return
    at = next((i for i, (a, b) in enumerate(zip(reference, candidate, strict=False)) if a != b), None)
    where = "" if at is None else f', first at token {at}: "{reference[at]}" and "{candidate[at]}"'
    raise InputError(
        f'The two servers have different tokenizers: "{document.opening} ..." is {len(reference)} tokens to the '
        f"reference and {len(candidate)} to the candidate{where}.",
        "Fidelity compares servers of one model; check that both serve it, and add the same special tokens.",
    )


def _notes(text: TextSet, compared: Sequence[_Compared], dialect: Dialect, outside: float) -> list[str]:
    notes = [
        f"KL over the top {dialect.top_k} tokens of both servers, all others, {outside:.1%} of the probability, "
        "as one: a lower bound"
    ]
    if not dialect.as_ids:
        notes.append("tokens told apart by their text: the server gives no ids")
    if left := len(text.documents) - len(compared):
        notes.append(
            f"{left} of {len(text.documents)} documents left out: chats, or longer than a server's context"
        )
    return notes


def _key(candidate: Side, reference: Side, text: TextSet) -> str:
    """Of what was compared; a server at a URL is known by that alone."""
    parts = [_identity(candidate), _identity(reference), text.sha256, "endpoint"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _identity(side: Side) -> str:
    return side.url or side.recipe.numerics_key
