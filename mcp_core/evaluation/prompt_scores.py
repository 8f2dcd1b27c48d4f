"""What a running server says of a text's own tokens: their log-probabilities and the likeliest alternatives.

Asked by ``/v1/completions`` with echo, as lm-eval does, or position by position (``position_scores.py``); servers
differ in what they accept, and the first form that a server answers in full is its dialect. This file does not know
what two servers' scores are compared for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_core.errors import RequestRejected, Unscorable
from mcp_core.evaluation.position_scores import score_positions

if TYPE_CHECKING:
    from mcp_core.evaluation.endpoints import Endpoint

__all__ = ["Dialect", "PromptScores", "dialect_of", "score"]

# A passage is one request; llama.cpp, which scores a token a step, may take many minutes with a large model.
TIMEOUT_S = 3600.0
# The probe is ten tokens long.
PROBE_TIMEOUT_S = 600.0
_PROBE = "The quick brown fox jumps over the lazy dog."
# Log-probabilities are rounded: the probabilities of a list may sum to a little over 1.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is asked. ``top_k`` alternatives a token; ``max_tokens`` 1 where 0 is refused; ``as_ids`` where
    tokens come as ids, which tell apart those that read the same; ``by_position`` of llama.cpp's own server."""

    top_k: int
    max_tokens: int
    as_ids: bool
    by_position: bool = False

    def body(self, model: str, text: str) -> dict[str, Any]:
        """The request for one text."""
        asked = {
            "model": model,
            "prompt": text,
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "logprobs": self.top_k,
            "echo": True,
        }
        return asked | {"return_tokens_as_token_ids": True} if self.as_ids else asked


# Best first. vLLM and our worker take the first; plain OpenAI servers give no ids and at most five alternatives.
_DIALECTS = (
    Dialect(20, 0, as_ids=True),
    Dialect(20, 0, as_ids=False),
    Dialect(20, 1, as_ids=False),
    Dialect(5, 1, as_ids=False),
    Dialect(20, 0, as_ids=True, by_position=True),
)


@dataclass(frozen=True, slots=True)
class PromptScores:
    """One text's tokens in order. The first has no log-probability (None) and no alternatives.

    ``tokens`` are names, by id where the server gives ids; ``offsets`` are where each begins in the text, None when
    the server does not say. ``top`` holds name -> natural log-probability, the token's own included.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Mapping[str, float], ...]
    offsets: tuple[int, ...] | None


async def dialect_of(endpoint: Endpoint, asked: Sequence[Dialect] = _DIALECTS) -> Dialect:
    """The first dialect in which the server scores a probe.

    Raises Unscorable with the server's own words when there is none, and what keeps it from answering at all.
    """
    reason = ""
    for dialect in asked:
        try:
            await score(endpoint, dialect, _PROBE, PROBE_TIMEOUT_S)
        except (RequestRejected, Unscorable) as error:
            reason = reason or error.message
        else:
            return dialect
    raise Unscorable(
        f"{endpoint.client.url} gives no log-probabilities of a prompt: {reason}",
        "MCP's workers and vLLM give them (completions with echo and logprobs), and llama.cpp's own server.",
    )


async def score(endpoint: Endpoint, dialect: Dialect, text: str, timeout_s: float = TIMEOUT_S) -> PromptScores:
    """Score one text. Raises RequestRejected for what the server refuses, Unscorable when no scores come back."""
    if dialect.by_position:
        return await _by_position(endpoint, dialect, text, timeout_s)
    body = dialect.body(endpoint.model, text)
    document = await endpoint.client.whole("/v1/completions", body, timeout_s=timeout_s)
    choice: dict[str, Any] = next(iter(document.get("choices") or ()), {})
    logprobs = choice.get("logprobs") or {}
    listed = len(logprobs.get("tokens") or ())
    # With max_tokens 0 vLLM counts a token that it does not list.
    prompt_tokens = (document.get("usage") or {}).get("prompt_tokens", listed - dialect.max_tokens)
    return _read(logprobs, int(prompt_tokens))


async def _by_position(endpoint: Endpoint, dialect: Dialect, text: str, timeout_s: float) -> PromptScores:
    async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await endpoint.client.whole(path, body, timeout_s=timeout_s)

    scores = await score_positions(ask, text, dialect.top_k)
    tops = [{f"token_id:{token}": value for token, value in each.top.items()} for each in scores]
    names = tuple(f"token_id:{each.token}" for each in scores)
    return PromptScores(
        names,
        tuple(each.logprob for each in scores),
        tuple(map(_alternatives, names, [each.logprob for each in scores], tops)),
        tuple(each.offset for each in scores),
    )


def _read(logprobs: Mapping[str, Any], count: int) -> PromptScores:
    """The part of an answer that is about the ``count`` prompt tokens. Raises Unscorable when there is none."""
    names, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    if not 2 <= count <= len(names) or len(values) != len(names) or values[0] is not None:
        raise Unscorable("it answered without log-probabilities of the prompt")
    lists = (logprobs.get("top_logprobs") or [None] * len(names))[:count]
    offsets = logprobs.get("text_offset") or []
    tops = [_alternatives(*each) for each in zip(names, values, lists, strict=False)]
    if any(not _is_distribution(top) for top in tops[1:]):
        raise Unscorable("its log-probabilities are not those of a distribution")
    return PromptScores(
        tuple(names[:count]), tuple(values[:count]), tuple(tops), tuple(offsets[:count]) if offsets else None
    )


def _alternatives(name: str, logprob: float | None, top: Mapping[str, float] | None) -> Mapping[str, float]:
    """Best first, the token's own among them."""
    if logprob is None:
        return {}
    known = {str(each): float(value) for each, value in (top or {}).items()} | {name: float(logprob)}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def _is_distribution(top: Mapping[str, float]) -> bool:
    return 0 < math.fsum(map(math.exp, top.values())) <= 1 + _SUM_TOLERANCE
