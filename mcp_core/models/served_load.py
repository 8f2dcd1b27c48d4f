"""ServedLoad: what a worker holds and computes at once, which is what its memory is predicted for.

This file does not know bytes (``footprint.py``) or how requests are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from mcp_core.recipe import Recipe
from mcp_core.workload import Workload

__all__ = ["ServedLoad"]


@dataclass(frozen=True, slots=True)
class ServedLoad:
    """``concurrency`` sequences held at once, each of ``context_tokens`` tokens, prompt and reply.

    ``prompt_tokens`` is the longest prompt, which is computed in chunks; ``allocated_tokens`` is what a cache that
    is allocated whole (static) holds for a sequence.
    """

    context_tokens: int
    concurrency: int = 1
    prompt_tokens: int | None = None
    allocated_tokens: int | None = None

    @property
    def longest_prompt(self) -> int:
        """Prompt tokens; all of the context where nothing else was said."""
        return min(self.context_tokens, self.prompt_tokens or self.context_tokens)

    @property
    def longest_allocation(self) -> int:
        """Tokens that a static cache holds."""
        return max(self.context_tokens, self.allocated_tokens or 0)

    @classmethod
    def of_workload(cls, workload: Workload, recipe: Recipe, max_context: int) -> Self:
        """The longest request of a workload, and as many at once as its clients and the Recipe let through.

        ``max_context`` is the worker's, tokens. Batching mode off serves one at a time, whoever waits.
        """
        let_in = recipe.batching.max_requests
        held = 1 if recipe.batching.mode == "off" else workload.at_once(let_in)
        longest, prompt = workload.longest_request, workload.longest_prompt
        return cls(min(longest, max_context), held, min(prompt, max_context), max_context)
