"""Ledger: from a mode's step outcomes to token events with times, and to the engine's counters.

This file does not know how a step is computed. Times are seconds of time.perf_counter().
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from mcp_core.generation import EngineStats, FinishReason, GenerationRequest, TokenEvent
from mcp_core.inference.mode import ModeFigures, Outcome, StepOutcome
from mcp_core.results import Failure

__all__ = ["Ledger", "ending"]

_TOTALS: dict[FinishReason, str] = {
    "stop": "finished_total",
    "length": "finished_total",
    "cancelled": "cancelled_total",
    "error": "failed_total",
}


@dataclass(slots=True)
class _Clock:
    """One request: when its first step began, when its first and its newest token were there."""

    started_s: float
    cached_tokens: int = 0
    first_s: float | None = None
    newest_s: float = 0.0


class Ledger:
    """Counters since the engine's start, and the clocks of the requests that are worked on."""

    def __init__(self, max_requests: int, figures: ModeFigures) -> None:
        self.max_requests = max_requests
        self._totals: Counter[str] = Counter()
        self._seconds: dict[str, Any] = {"prefill_s_total": 0.0, "decode_s_total": 0.0}
        self._figures = figures
        self._queued = 0
        self._batch_size = 0
        self._clocks: dict[str, _Clock] = {}

    def stats(self) -> EngineStats:
        """Everything as of now."""
        shown = asdict(self._figures)
        queued = self._queued + shown.pop("waiting")
        return EngineStats(
            max_requests=self.max_requests,
            queued=queued,
            batch_size=self._batch_size,
            **shown,
            **self._totals,
            **self._seconds,
        )

    def take(self, step: StepOutcome, began_s: float, ended_s: float) -> list[TokenEvent]:
        """Count one step and turn what it did into events, in its order."""
        for request, cached in step.started:
            self._clocks[request.id] = _Clock(began_s, cached)
            self._totals["cached_prompt_tokens_total"] += cached
        events = [self._event(outcome, began_s, ended_s) for outcome in step.outcomes]
        self._count(step, ended_s - began_s)
        return events

    def end(
        self, request: GenerationRequest, finish: FinishReason, at_s: float, failure: Failure | None = None
    ) -> TokenEvent:
        """The event of a request that ended without a step of its own."""
        self._totals[_TOTALS[finish]] += 1
        clock = self._clocks.pop(request.id, None)
        timing = _timing(request, clock) if clock else None
        return replace(ending(request, finish, at_s), failure=failure, timing=timing)

    def show(self, figures: ModeFigures, queued: int) -> None:
        """Take over where the mode stands, and how many requests it has not been given yet."""
        self._figures, self._queued = figures, queued

    def _event(self, outcome: Outcome, began_s: float, ended_s: float) -> TokenEvent:
        request = outcome.request
        clock = self._clocks.setdefault(request.id, _Clock(began_s))
        if outcome.token is not None:
            clock.newest_s = ended_s
            clock.first_s = clock.first_s or ended_s
            self._totals["output_tokens_total"] += 1
        if outcome.finish is not None:
            del self._clocks[request.id]
            self._totals[_TOTALS[outcome.finish]] += 1
        return TokenEvent(
            request.id,
            ended_s,
            token=outcome.token,
            finish=outcome.finish,
            logprob=outcome.logprob,
            prompt_logprobs=outcome.prompt_logprobs,
            failure=Failure.of(outcome.error) if outcome.error else None,
            timing=_timing(request, clock) if outcome.finish else None,
            cached_tokens=clock.cached_tokens if outcome.finish else 0,
        )

    def _count(self, step: StepOutcome, seconds: float) -> None:
        if not step.batch:
            return
        self._batch_size = step.batch
        self._totals["prompt_tokens_total"] += step.prefill_tokens
        if step.prefill_tokens or not any(outcome.token is not None for outcome in step.outcomes):
            self._seconds["prefill_s_total"] += seconds
        else:
            self._seconds["decode_s_total"] += seconds
            self._totals["decode_steps_total"] += 1


def ending(request: GenerationRequest, finish: FinishReason, at_s: float) -> TokenEvent:
    """An event that only ends a request."""
    return TokenEvent(request.id, at_s, finish=finish)


def _timing(request: GenerationRequest, clock: _Clock) -> dict[str, float]:
    """ms, for usage.timing: arrival to first step, first step to first token, first token to last."""
    queue_s = clock.started_s - request.arrived_s if request.arrived_s else 0.0
    first_s = clock.first_s
    return {
        "queue_ms": max(0.0, queue_s) * 1e3,
        "prefill_ms": (first_s - clock.started_s) * 1e3 if first_s is not None else 0.0,
        "decode_ms": (clock.newest_s - first_s) * 1e3 if first_s is not None else 0.0,
    }
