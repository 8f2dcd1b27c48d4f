"""Continuous: requests join and leave at every step, their keys and values in pages of one pool.

The same class serves one request at a time where a prefix cache or recorded steps are asked for. This file does not
know how pages are shared (``paged/``) or tokens chosen (``choosing.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mcp_core.errors import OutOfMemory
from mcp_core.generation import GenerationRequest, Preparation
from mcp_core.inference.choosing import Choice, Chooser, Chosen, Row
from mcp_core.inference.finish import finish_of
from mcp_core.inference.mode import ModeFigures, Outcome, StepOutcome
from mcp_core.inference.one_by_one import OneByOne
from mcp_core.inference.paged.decode_steps import Computed
from mcp_core.inference.paged.host_pages import HostPages, TimedStep
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Part, Scheduler
from mcp_core.inference.paged.sequence import Sequence as PagedSequence
from mcp_core.inference.transfer import to_device
from mcp_core.models.kv_pool import MOST_RUNNING
from mcp_core.models.load_errors import is_out_of_memory
from mcp_core.recipe import Batching

__all__ = ["Continuous"]

_log = logging.getLogger(__name__)

# Lack of memory halves the step this often before the requests in it are failed (CONTRACTS.md).
_MOST_HALVINGS = 2
_SMALLEST_STEP = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Launched:
    """A step whose tokens may still be on their way: ``whole`` are the sequences that each get one, in order."""

    timed: TimedStep

    whole: tuple[PagedSequence, ...]
    chosen: Chosen | None
    prefill_tokens: int
    size: int


class Continuous:
    """``kernel`` names what computes its attention. ``scorer`` serves prompts whose own log-probabilities are asked
    for (echo): they need logits of every position, which a shared step does not keep.

    ``host`` keeps what preempted sequences had computed. ``prepare`` makes the steps of up to so many sequences
    ahead, those that there are not yet.

    ``ahead``: a step is launched before the tokens of the one before it are read, so that a device need not wait
    for the host between two steps. A sequence that ends by a token of its own is then computed once more, in vain.
    """

    wait_s = 0.0

    def __init__(
        self,
        scheduler: Scheduler,
        runner: PagedRunner,
        scorer: OneByOne,
        eos_ids: frozenset[int],
        max_context: int,
        device: torch.device,
        host: HostPages | None = None,
        *,
        name: str = "continuous",
        ahead: bool | None = None,
        prepare: Callable[[int], Preparation] | None = None,
    ) -> None:
        self.name = name
        self.kernel: str | None = runner.kernel
        self._prepare = prepare
        self.preparation = prepare(scheduler.max_running) if prepare else None
        self._scheduler = scheduler
        self._host = host
        if host is not None:
            scheduler.keeper = host
        self._waits = device.type != "cuda"
        self._runner = runner
        self._scorer = scorer
        self._eos_ids = eos_ids
        self._max_context = max_context
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._chooser = Chooser(eos_ids, device)
        self._launched: _Launched | None = None
        self._scored_last = False
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
        return self._scheduler.max_running - len(self.held())

    def add(self, request: GenerationRequest) -> None:
        """Queue it."""
        if request.prompt_logprobs is not None:
            self._scorer.add(request)
        else:
            self._scheduler.add(request, self.longest)

    def drop(self, request_id: str) -> GenerationRequest | None:
        """Forget it."""
        sequence = self._scheduler.drop(request_id)
        if sequence is not None:
            self._forget(sequence.request)
            return sequence.request
        return self._scorer.drop(request_id)

    def step(self) -> StepOutcome:
        """Launch one forward pass over all that take part and read the one before it; or one pass of the scorer.

        The pass is read itself, before another one is launched, where the device or one of the requests needs that.
        """
        before, scores = self._launched, self._is_scorers_turn
        if before is None:
            parts = [] if scores else self._scheduler.plan()
            if not parts:
                return self._score()
        else:
            parts = [] if scores else self._plan_ahead()
        started = tuple(self._newly_started(parts))
        try:
            self._launched = self._launch(parts) if parts else None
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._launched, read = None, self._read(before)
            return replace(read, outcomes=(*read.outcomes, *self._after_lack_of_memory(parts)), started=started)
        if before is None and not self._may_wait(parts):
            before, self._launched = self._launched, None
            return replace(self._read(before), started=started)
        begun = (self._launched.prefill_tokens, self._launched.size) if self._launched else (0, 0)
        return replace(self._read(before), started=started, begun=begun)

    def at_work(self) -> tuple[GenerationRequest, ...]:
        """Those whose tokens were in it."""
        return self._at_work

    def held(self) -> tuple[GenerationRequest, ...]:
        """Running ones first."""
        return (*self._scheduler.requests(), *self._scorer.held())

    def figures(self) -> ModeFigures:
        """Sequences, tokens and pages."""
        scheduler, pool, scorer = self._scheduler, self._scheduler.pool, self._scorer.figures()
        return ModeFigures(
            running=scheduler.running + scorer.running,
            waiting=scheduler.waiting + scorer.waiting,
            kv_tokens=scheduler.tokens_held,
            kv_capacity_tokens=pool.capacity * pool.page_size,
            kv_pages_used=pool.used,
            kv_pages_kept=pool.kept,
            kv_pages_total=pool.capacity,
            kv_evictions_total=pool.evictions,
            preemptions_total=scheduler.preemptions,
            **self._host_figures(),
        )

    def _host_figures(self) -> dict[str, int]:
        host = self._host
        if host is None:
            return {}
        return {
            "kv_host_bytes": host.nbytes,
            "kv_host_limit_bytes": host.limit_bytes,
            "kv_host_kept_total": host.kept_total,
            "kv_host_returned_total": host.returned_total,
        }

    def pause(self) -> StepOutcome:
        """Read the step that was launched."""
        before, self._launched = self._launched, None
        return self._read(before)

    def set_limits(self, batching: Batching) -> None:
        """How many sequences may run at once; their steps are made ahead where that is asked for."""
        assert self._launched is None, "making a step overwrites tokens that nobody has read"
        if batching.mode == "off":
            return
        most = min(batching.max_requests, MOST_RUNNING)
        if self._prepare is not None and self.preparation is not None:
            self.preparation = self.preparation.and_then(self._prepare(most))
        self._scheduler.set_most(most)

    def close(self) -> None:
        """Give the pool's memory back."""
        if self._launched is not None:
            self._read(self._launched)  # the device may still be writing to it
        self._launched = None
        self._runner.close()

    def _plan_ahead(self) -> list[Part]:
        """The next step's parts while tokens are unread; none where those must be known first."""
        parts = self._scheduler.plan_ahead()
        return parts if self._may_wait(parts) else []

    def _may_wait(self, parts: Sequence[Part]) -> bool:
        return self._ahead and all(self._chooser.can_wait(part.sequence.request) for part in parts)

    def _launch(self, parts: Sequence[Part]) -> _Launched:
        """Compute the parts and choose the next token of those that are whole, all of it on the device."""
        self._at_work = tuple(part.sequence.request for part in parts)
        self._scored_last = False
        timed = _timed(parts)
        prefill = sum(part.count for part in parts if part.sequence.chosen_count == 0)
        computed = self._runner.run(parts)
        whole = [index for index, part in enumerate(parts) if part.complete]
        sequences = tuple(parts[index].sequence for index in whole)
        for part in parts:
            self._scheduler.done(part)
        chosen = self._choose(computed, whole, sequences) if whole else None
        return _Launched(timed, sequences, chosen, prefill, len(parts))

    def _choose(self, computed: Computed, whole: list[int], sequences: Sequence[PagedSequence]) -> Chosen:
        logits, best = computed
        if len(whole) < logits.shape[0]:
            places = to_device(torch.tensor(whole), logits.device)
            logits, best = logits[places], best[places]
        rows = [Row(sequence.request, sequence.tokens, sequence.unread) for sequence in sequences]
        chosen = self._chooser.launch(logits, best, rows)
        self._runner.keep(chosen.tokens)
        for row, sequence in enumerate(sequences):
            sequence.choose(row)
        return chosen

    def _read(self, launched: _Launched | None) -> StepOutcome:
        """What that step did; nothing for sequences that have ended since."""
        if launched is None:
            return StepOutcome()
        choices = launched.chosen.read() if launched.chosen else []
        if self._host is not None:
            self._host.step_read(launched.timed, waited=self._waits or launched.chosen is not None)
        outcomes = [
            self._take(sequence, choice)
            for sequence, choice in zip(launched.whole, choices, strict=True)
            if not sequence.ended
        ]
        return StepOutcome(tuple(outcomes), (), launched.prefill_tokens, launched.size)

    def _take(self, sequence: PagedSequence, choice: Choice) -> Outcome:
        """The sequence has one more token; it may be its last."""
        self._scheduler.read(sequence, choice.token)
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

    @property
    def _is_scorers_turn(self) -> bool:
        """Every other pass, once no request that came earlier still waits for a place."""
        asked = self._scorer.held()
        if not asked or (self._scored_last and (self._scheduler.running or self._scheduler.waiting)):
            return False
        first = self._scheduler.first_waiting
        return first is None or asked[0].arrived_s <= first.arrived_s

    def _score(self) -> StepOutcome:
        """The prompt of one request, or one more token of its reply; nothing where none is asked for."""
        self._at_work = self._scorer.held()[:1]
        self._scored_last = True
        return self._scorer.step()

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
        failed = [part.sequence for part in parts if not part.sequence.ended]
        for sequence in failed:
            self._scheduler.drop(sequence.request.id)
            self._forget(sequence.request)
        return [Outcome(sequence.request, finish="error", error=error) for sequence in failed]

    def _forget(self, request: GenerationRequest) -> None:
        self._chooser.forget(request.id)
        self._started.discard(request.id)


def _timed(parts: Sequence[Part]) -> TimedStep:
    """The step of these parts, launched now."""
    of_prompts = sum(part.count for part in parts if part.count > 1)
    return TimedStep(time.perf_counter(), sum(part.count for part in parts), of_prompts)
