"""A text's own tokens scored by llama.cpp's server, which scores no prompt: one position after the other.

Its native route says what it would draw and how likely each token was before temperature and filters; it is made to
draw the text's own next token. All before that is kept from the position before. This file does not know who asks,
or what scores are for (``prompt_scores.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp_core.errors import ContextTooLong, RequestRejected, Unscorable
from mcp_core.llama_cpp_scores import ALL, SMALLEST, listed, question

__all__ = ["Ask", "PositionScore", "score_positions"]

# Path and body of a request -> its answer.
Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
_LETTER = "a"


@dataclass(frozen=True, slots=True)
class PositionScore:
    """One token by its id, its natural log-probability and the likeliest ones'; both lack for the first.

    ``offset`` is where it begins in the text, in characters.
    """

    token: int
    logprob: float | None
    top: Mapping[int, float]
    offset: int


async def score_positions(ask: Ask, text: str, top_k: int) -> tuple[PositionScore, ...]:
    """Every token of ``text``. Raises Unscorable where the server has no such routes or gives no log-probabilities,
    ContextTooLong, and what ``ask`` raises."""
    tokens = await _tokens(ask, text, special=True)
    letter = await _tokens(ask, _LETTER, special=False)
    if len(tokens) < 2 or not letter:
        raise Unscorable("it does not say which tokens a text is")
    ids = [token for token, _ in tokens]
    await _require_fitting(ask, ids)
    starts = _starts([data for _, data in tokens])
    found = [PositionScore(ids[0], None, {}, 0)]
    for index in range(1, len(ids)):
        top, logprob = await _score(ask, ids, index, top_k, letter[-1][0])
        found.append(PositionScore(ids[index], logprob, top, starts[index]))
    return tuple(found)


async def _score(
    ask: Ask, ids: Sequence[int], index: int, top_k: int, letter: int
) -> tuple[Mapping[int, float], float]:
    """The list before a token and its own log-probability. Of a token that ends inside a character the server tells
    nothing: then a letter is drawn, and the whole list is asked for where the token is not among the best."""
    known: Mapping[int, float] = {}
    for drawn, count in ((ids[index], top_k), (letter, top_k), (letter, ALL)):
        known = dict(listed(await ask("/completion", question(ids[:index], drawn, count))))
        if ids[index] in known:
            break
    if not known:
        raise Unscorable("it answered without log-probabilities")
    best = dict(sorted(known.items(), key=lambda item: -item[1])[:top_k])
    return best, known.get(ids[index], SMALLEST)


async def _tokens(ask: Ask, text: str, *, special: bool) -> list[tuple[int, bytes]]:
    asked = {"content": text, "add_special": special, "parse_special": True, "with_pieces": True}
    answer = (await ask("/tokenize", asked)).get("tokens")
    if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
        return []
    return [(int(each["id"]), _data(each["piece"])) for each in answer]


async def _require_fitting(ask: Ask, ids: Sequence[int]) -> None:
    """Known before a thousand positions are asked for."""
    try:
        await ask("/completion", {"prompt": ids[:-1], "n_predict": 1, "cache_prompt": True, "stream": False})
    except RequestRejected as error:
        if "context size" in error.message:
            raise ContextTooLong(error.message, "Start it with a longer context.") from error
        raise


def _starts(pieces: Sequence[bytes]) -> list[int]:
    """Where each token begins: behind all whole characters before it."""
    ends = itertools.accumulate(pieces, initial=b"")
    return [len(before.decode(errors="ignore")) for before in ends]


def _data(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)
