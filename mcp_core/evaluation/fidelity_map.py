"""From scored passages to a TokenMap: ids as people read them, both models' guesses.

This file does not know how passages were scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mcp_core.token_map import Guess, MappedDocument, MappedToken, TokenMap

__all__ = ["token_map"]

# Digits that are kept: a probability is read, not computed with.
_DIGITS = 4


def token_map(scored: Sequence[Any], text_of: Callable[[int], str]) -> TokenMap:
    """``scored`` are ``fidelity_scoring.PassageScores``, in their order."""
    return TokenMap(
        documents=tuple(
            MappedDocument(
                name=each.passage.document.name,
                stratum=each.passage.document.stratum,
                tokens=tuple(_tokens(each, text_of)),
                is_reply=each.passage.is_reply,
            )
            for each in scored
        )
    )


def _tokens(scored: Any, text_of: Callable[[int], str]) -> Iterator[MappedToken]:
    first = scored.passage.scored_from
    for index, token in enumerate(scored.passage.ids):
        at = index - first
        if at < 0:
            yield MappedToken(id=token, text=text_of(token))
            continue
        yield MappedToken(
            id=token,
            text=text_of(token),
            kl=_short(scored.scores.kl[at]),
            reference_top=_guesses(scored.reference_ids[at], scored.reference_p[at], text_of),
            candidate_top=_guesses(scored.candidate_ids[at], scored.candidate_p[at], text_of),
            true_p_reference=_short(scored.scores.p_reference[at]),
            true_p_candidate=_short(scored.scores.p_candidate[at]),
        )


def _guesses(ids: Sequence[int], shares: Sequence[float], text_of: Callable[[int], str]) -> tuple[Guess, ...]:
    return tuple((text_of(int(token)), _short(share)) for token, share in zip(ids, shares, strict=True))


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
