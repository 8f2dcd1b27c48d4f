"""OneByOne: batching mode off. One request at a time, in order of arrival, with any kind of cache.

This file does not know how a sequence is decoded (``decoding.py``) or who asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from mcp_core.generation import GenerationRequest
from mcp_core.inference.decoding import Decoder, Step
from mcp_core.inference.kv_cache import CacheFactory
from mcp_core.inference.mode import ModeFigures, Outcome, StepOutcome
from mcp_core.inference.speculation import SpeculationCount
from mcp_core.recipe import Batching

__all__ = ["OneByOne"]


class OneByOne:
    """``is_cancelled`` is asked about the running request between two forward passes of its prompt; ``keeps`` is
    whether its caches keep keys and values at all."""

    name = "off"
    kernel = None
    preparation = None
    wait_s = 0.0

    def __init__(
        self,
        decoder: Decoder,
        new_cache: CacheFactory,
        longest: int,
        is_cancelled: Callable[[str], bool],
        *,
        keeps: bool = True,
    ) -> None:
        self.longest = longest
        self._keeps = keeps
        self._decoder = decoder
        self._new_cache = new_cache
        self._is_cancelled = is_cancelled
        self._waiting: deque[GenerationRequest] = deque()
        self._running: GenerationRequest | None = None
        self._steps: Iterator[Step] | None = None
        self._tokens = 0

    @property
    def room(self) -> int:
        """One at a time."""
        return 1 - len(self.held())

    def add(self, request: GenerationRequest) -> None:
        """Queue it."""
        self._waiting.append(request)

    def drop(self, request_id: str) -> GenerationRequest | None:
        """Forget it."""
        if self._running is not None and self._running.id == request_id:
            dropped, self._running, self._steps = self._running, None, None
            return dropped
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return request
        return None

    def step(self) -> StepOutcome:
        """The running request's next token, or the first of the next request."""
        if self._steps is not None:
            return self._advance(prefill_tokens=0)
        if not self._waiting:
            return StepOutcome()
        request = self._running = self._waiting.popleft()
        self._tokens = len(request.prompt)
        self._steps = self._decoder.steps(request, self._new_cache(), lambda: self._is_cancelled(request.id))
        first = self._advance(prefill_tokens=len(request.prompt))
        return StepOutcome(first.outcomes, ((request, 0),), first.prefill_tokens, 1)

    def at_work(self) -> tuple[GenerationRequest, ...]:
        """The running one."""
        return (self._running,) if self._running else ()

    def held(self) -> tuple[GenerationRequest, ...]:
        """The running one first."""
        return ((self._running,) if self._running else ()) + tuple(self._waiting)

    def figures(self) -> ModeFigures:
        """One running at most."""
        running = int(self._running is not None)
        guesses = self._decoder.proposer.count if self._decoder.proposer else SpeculationCount()
        return ModeFigures(
            running,
            len(self._waiting),
            self._tokens * running * self._keeps,
            self.longest * self._keeps,
            drafted_tokens_total=guesses.drafted,
            accepted_tokens_total=guesses.accepted,
        )

    def pause(self) -> StepOutcome:
        """No step is ever under way."""
        return StepOutcome()

    def set_limits(self, batching: Batching) -> None:
        """One at a time, whatever they are."""

    def close(self) -> None:
        """Its caches go with it."""
        self._steps = self._running = None
        self._waiting.clear()

    def _advance(self, prefill_tokens: int) -> StepOutcome:
        request, steps = self._running, self._steps
        assert request is not None
        assert steps is not None
        step = next(steps)
        self._tokens += step.token is not None
        if step.finish is not None:
            self._running = self._steps = None
        outcome = Outcome(request, step.token, step.finish, step.logprob, step.prompt_logprobs)
        computed = 0 if step.finish == "cancelled" else prefill_tokens
        return StepOutcome((outcome,), (), computed, 1)
