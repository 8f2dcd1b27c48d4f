"""The planner's questions: how long a context fits, and how many users at once. Exact against ``Predictor.at``.

This file does not know how memory is computed (``footprint.py``), only that more never takes less.
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_core.models.footprint import Predictor
from mcp_core.models.served_load import ServedLoad

__all__ = ["MOST_USERS", "longest_context", "users_at"]

# As many as a Recipe's batching.max_requests lets through.
MOST_USERS = 4096


def longest_context(predictor: Predictor, concurrency: int = 1) -> int:
    """Most tokens (prompt and reply) of each of ``concurrency`` sequences that fit what is free now.

    At most the model's own context, whatever kv.max_context says; 0 where not even one token fits.
    """
    return _most(lambda tokens: predictor.at(ServedLoad(tokens, concurrency)).fits, predictor.architecture.context)


def users_at(predictor: Predictor, context_tokens: int) -> int:
    """Most sequences of ``context_tokens`` held at once that fit what is free now; at most ``MOST_USERS``, 0: none.

    That is what memory lets through; batching mode off still serves them one after the other.
    """
    return _most(lambda users: predictor.at(ServedLoad(context_tokens, users)).fits, MOST_USERS)


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that fits, by halving."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
