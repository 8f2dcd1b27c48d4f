"""PromptScorer: prompts whose own log-probabilities are asked for (echo), one at a time beside a batching mode.

They need logits of every position, which a shared step does not keep. This file does not know the mode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mcp_core.generation import GenerationRequest
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.kv_cache import CacheFactory
from mcp_core.inference.mode import Outcome, StepOutcome

__all__ = ["PromptScorer"]


class PromptScorer:
    """``waiting`` in order of arrival; ``is_cancelled`` is asked between forward passes."""

    def __init__(self, decoder: Decoder, new_cache: CacheFactory, is_cancelled: Callable[[str], bool]) -> None:
        self.waiting: deque[GenerationRequest] = deque()
        self._decoder = decoder
        self._new_cache = new_cache
        self._is_cancelled = is_cancelled

    def drop(self, request_id: str) -> GenerationRequest | None:
        """Forget a waiting one."""
        found = next((request for request in self.waiting if request.id == request_id), None)
        if found is not None:
            self.waiting.remove(found)
        return found

    def score(self, request: GenerationRequest) -> StepOutcome:
        """The prompt, and the reply where one is asked for, to its end."""
        steps = self._decoder.steps(request, self._new_cache(), lambda: self._is_cancelled(request.id))
        outcomes = tuple(
            Outcome(request, step.token, step.finish, step.logprob, step.prompt_logprobs) for step in steps
        )
        computed = 0 if outcomes[0].finish == "cancelled" else len(request.prompt)
        return StepOutcome(outcomes, ((request, 0),), computed, 1)
