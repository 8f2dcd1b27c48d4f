"""Mode: how requests share the model, as the engine sees it: requests in, outcomes of one step out.

A batching mode is one class with these methods and a row in ``batching.py``. Everything here runs on the engine's
thread. This file does not know any mode, nor who sends requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mcp_core.errors import McpError
from mcp_core.generation import FinishReason, GenerationRequest, Preparation, TokenLogprob
from mcp_core.recipe import Batching

__all__ = ["Mode", "ModeFigures", "Outcome", "StepOutcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did to one request: a token, or its end, or both. ``error`` goes with finish "error"."""

    request: GenerationRequest
    token: int | None = None
    finish: FinishReason | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    error: McpError | None = None


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One step. ``prefill_tokens`` is 0 for a step that only decodes; ``batch`` counts its sequences.

    ``begun`` are prompt tokens and sequences of the pass that was begun in it, where another one was read.
    ``started`` are requests that were first worked on in it, with the prompt tokens that a cache saved them.
    """

    outcomes: tuple[Outcome, ...] = ()
    started: tuple[tuple[GenerationRequest, int], ...] = ()
    prefill_tokens: int = 0
    batch: int = 0
    begun: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ModeFigures:
    """Where a mode stands, under EngineStats' names. Pages are 0 for a mode without them."""

    running: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_capacity_tokens: int = 0
    kv_pages_used: int = 0
    kv_pages_kept: int = 0
    kv_pages_total: int = 0
    kv_evictions_total: int = 0
    preemptions_total: int = 0
    kv_host_bytes: int = 0
    kv_host_limit_bytes: int = 0
    kv_host_kept_total: int = 0
    kv_host_returned_total: int = 0
    drafted_tokens_total: int = 0
    accepted_tokens_total: int = 0


class Mode(Protocol):
    """One way to serve requests. Every request that was added ends in exactly one Outcome with ``finish``."""

    @property
    def name(self) -> str:
        """As Recipe.batching.mode, with what it adds: "continuous, recorded steps"."""

    @property
    def kernel(self) -> str | None:
        """What computes attention, where it is not the model's own implementation."""

    @property
    def preparation(self) -> Preparation | None:
        """What making its steps ahead took; None where they are not."""

    @property
    def longest(self) -> int:
        """The longest prompt + reply that it can hold, tokens."""

    @property
    def wait_s(self) -> float:
        """How long the engine may wait for more requests before the next step is worth calling; 0 is not at all."""

    @property
    def room(self) -> int:
        """How many more requests it would begin soon; others wait outside, where they can still be taken back."""

    def add(self, request: GenerationRequest, /) -> None:
        """Take a request over."""

    def drop(self, request_id: str, /) -> GenerationRequest | None:
        """Forget a request, wherever it is; None when it is not here. The caller says how it ended."""

    def step(self) -> StepOutcome:
        """Do one step; at once empty when there is nothing to do. Raises what the model raises."""

    def at_work(self) -> tuple[GenerationRequest, ...]:
        """The requests of the step that was done or tried last."""

    def held(self) -> tuple[GenerationRequest, ...]:
        """Every request that has not ended, longest here first."""

    def figures(self) -> ModeFigures:
        """Where it stands."""

    def pause(self) -> StepOutcome:
        """End the step that is under way; what it did. Raises what the model raises."""

    def set_limits(self, batching: Batching, /) -> None:
        """Take over max_requests and max_wait_ms, after ``pause``. Raises what making steps ahead raises."""

    def close(self) -> None:
        """Give its memory back."""
