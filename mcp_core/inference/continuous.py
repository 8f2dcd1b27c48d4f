"""Continuous: requests join and leave at every step, their keys and values in pages of one pool.

The same class serves one request at a time where a prefix cache or recorded steps are asked for. This file does not
know how pages are shared (``paged/``) or tokens chosen (``choosing.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from mcp_core.errors import OutOfMemory
from mcp_core.generation import GenerationRequest
from mcp_core.inference.choosing import Choice, Chooser, Row
from mcp_core.inference.finish import finish_of
from mcp_core.inference.mode import ModeFigures, Outcome, StepOutcome
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Part, Scheduler
from mcp_core.inference.scoring import PromptScorer
from mcp_core.models.kv_pool import MOST_RUNNING
from mcp_core.models.load_errors import is_out_of_memory
from mcp_core.recipe import Batching

__all__ = ["Continuous"]

_log = logging.getLogger(__name__)

# Lack of memory halves the step this often before the requests in it are failed (CONTRACTS.md).
_MOST_HALVINGS = 2
_SMALLEST_STEP = 16


class Continuous:
    """``kernel`` names what computes its attention."""

    wait_s = 0.0

    def __init__(
        self,
        scheduler: Scheduler,
        runner: PagedRunner,
        scorer: PromptScorer,
        eos_ids: frozenset[int],
        max_context: int,
        device: torch.device,
        *,
        name: str = "continuous",
    ) -> None:
        self.name = name
        self.kernel: str | None = runner.kernel
        self._scheduler = scheduler
        self._runner = runner
        self._scorer = scorer
        self._eos_ids = eos_ids
        self._max_context = max_context
        self._chooser = Chooser(eos_ids, device)
        self._started: set[str] = set()
        self._at_work: tuple[GenerationRequest, ...] = ()
        self._halvings = 0

    @property
    def longest(self) -> int:
        """Bounded by the pool, and by the model's context."""
        return min(self._max_context, self._scheduler.longest)

    @property
    def room(self) -> int:
        """Free places among the sequences that may run."""
        held = self._scheduler.running + self._scheduler.waiting + len(self._scorer.waiting)
        return self._scheduler.max_running - held

    def add(self, request: GenerationRequest) -> None:
        """Queue it."""
        if request.prompt_logprobs is not None:
            self._scorer.waiting.append(request)
        else:
            self._scheduler.add(request)

    def drop(self, request_id: str) -> GenerationRequest | None:
        """Forget it."""
        sequence = self._scheduler.drop(request_id)
        if sequence is not None:
            self._forget(sequence.request)
            return sequence.request
        return self._scorer.drop(request_id)

    def step(self) -> StepOutcome:
        """One forward pass over all that take part, or one prompt scored."""
        parts = self._scheduler.plan()
        if not parts:
            return self._score() if self._scorer.waiting else StepOutcome()
        self._at_work = tuple(part.sequence.request for part in parts)
        started = tuple(self._newly_started(parts))
        prefill = sum(part.count for part in parts if part.sequence.output_count == 0)
        try:
            outcomes = self._compute(parts)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            outcomes = self._after_lack_of_memory(parts)
        return StepOutcome(tuple(outcomes), started, prefill, len(parts))

    def at_work(self) -> tuple[GenerationRequest, ...]:
        """Those whose tokens were in it."""
        return self._at_work

    def held(self) -> tuple[GenerationRequest, ...]:
        """Running ones first."""
        return (*self._scheduler.requests(), *self._scorer.waiting)

    def figures(self) -> ModeFigures:
        """Sequences, tokens and pages."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        return ModeFigures(
            running=scheduler.running,
            waiting=scheduler.waiting + len(self._scorer.waiting),
            kv_tokens=scheduler.tokens_held,
            kv_capacity_tokens=pool.capacity * pool.page_size,
            kv_pages_used=pool.used,
            kv_pages_kept=pool.kept,
            kv_pages_total=pool.capacity,
            kv_evictions_total=pool.evictions,
            preemptions_total=scheduler.preemptions,
        )

    def set_limits(self, batching: Batching) -> None:
        """How many sequences may run at once."""
        if self._scheduler.max_running > 1:
            self._scheduler.max_running = min(batching.max_requests, MOST_RUNNING)

    def close(self) -> None:
        """Give the pool's memory back."""
        self._runner.close()

    def _compute(self, parts: Sequence[Part]) -> list[Outcome]:
        logits = self._runner.run(parts)
        whole = [index for index, part in enumerate(parts) if part.complete]
        for part in parts:
            self._scheduler.done(part)
        rows = [Row(parts[index].sequence.request, parts[index].sequence.tokens) for index in whole]
        if not rows:
            return []
        wanted = logits if len(whole) == len(parts) else logits[whole]
        choices = self._chooser.choose(wanted, rows)
        return [self._take(parts[index], choice) for index, choice in zip(whole, choices, strict=True)]

    def _take(self, part: Part, choice: Choice) -> Outcome:
        """The sequence has one more token; it may be its last."""
        sequence = part.sequence
        sequence.tokens.append(choice.token)
        count = sequence.output_count
        finish = finish_of(sequence.request, choice.token, count, self._eos_ids, self.longest)
        if finish is not None:
            self._scheduler.end(sequence)
            self._forget(sequence.request)
        return Outcome(sequence.request, choice.token, finish, choice.logprob)

    def _newly_started(self, parts: Sequence[Part]) -> list[tuple[GenerationRequest, int]]:
        fresh = [part.sequence for part in parts if part.sequence.request.id not in self._started]
        self._started.update(sequence.request.id for sequence in fresh)
        return [(sequence.request, sequence.cached) for sequence in fresh]

    def _score(self) -> StepOutcome:
        request = self._scorer.waiting.popleft()
        self._at_work = (request,)
        return self._scorer.score(request)

    def _after_lack_of_memory(self, parts: Sequence[Part]) -> list[Outcome]:
        """Every sequence waits again with what it has so far, and steps are half as large; at most twice."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._halvings < _MOST_HALVINGS and self._scheduler.step_tokens > _SMALLEST_STEP:
            self._halvings += 1
            self._scheduler.step_tokens //= 2
            self._scheduler.preempt_all()
            _log.warning("memory ran out in a step; steps now hold %d tokens", self._scheduler.step_tokens)
            return []
        error = OutOfMemory(
            "Memory ran out while generating.",
            "Choose a smaller batching.step_tokens, batching.kv_blocks or kv.max_context, or another scheme.",
        )
        failed = [part.sequence for part in parts]
        for sequence in failed:
            self._scheduler.drop(sequence.request.id)
            self._forget(sequence.request)
        return [Outcome(sequence.request, finish="error", error=error) for sequence in failed]

    def _forget(self, request: GenerationRequest) -> None:
        self._chooser.forget(request.id)
        self._started.discard(request.id)
