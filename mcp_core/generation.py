"""Generation: what goes into an engine and what comes out. Plain frozen values, no torch, no text.

This file does not know about HTTP, stop strings or tokenizers (``serving/``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mcp_core.results import Failure

__all__ = [
    "PREFILL_CHUNK_TOKENS",
    "EngineStats",
    "FinishReason",
    "GenerationRequest",
    "Preparation",
    "Sampling",
    "TokenEvent",
    "TokenLogprob",
]

# By kind of device: a cancelled request must not wait for a long prompt to end on a slow one, and the tensors of
# one chunk are what a footprint counts as activations.
PREFILL_CHUNK_TOKENS = {"cpu": 256, "cuda": 2048}

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. top_k 0 and min_p 0 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue. ``id`` is unique in the worker.

    ``logprobs``: None for none, else how many alternatives to report per generated token (0 = the token only).
    ``prompt_logprobs``: the same for the prompt's own tokens (completions' echo). ``max_tokens`` may be 0 only
    with ``prompt_logprobs``. ``arrived_s`` is time.perf_counter() when the request was accepted. Prefixes are
    shared among requests of one ``tenant`` only.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    arrived_s: float = 0.0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of one token before temperature and filters; ``top`` best first."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of one request. The last event of a request has ``finish`` set, and exactly one has.

    ``token`` is None on an event that only ends the request (cancelled, error, or max_tokens 0); an EOS token
    is reported as a token with finish "stop". ``at_s`` is time.perf_counter() in the worker. On the last
    event ``timing`` holds queue_ms, prefill_ms and decode_ms, and ``cached_tokens`` the prompt tokens that a prefix
    cache saved.
    """

    request_id: str
    at_s: float
    token: int | None = None
    finish: FinishReason | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    failure: Failure | None = None
    timing: dict[str, float] | None = None
    cached_tokens: int = 0


@dataclass(slots=True)
class Preparation:
    """What making decode steps ahead took, s. ``kept``: whether everything that was compiled was found from an
    earlier start; None where nothing was compiled, only recorded."""

    seconds: float = 0.0
    kept: bool | None = None

    def and_then(self, other: Preparation) -> Preparation:
        """Both, one after the other."""
        known = [each.kept for each in (self, other) if each.kept is not None]
        return Preparation(self.seconds + other.seconds, all(known) if known else None)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start, and what is going on now.

    ``batch_size`` is the number of sequences in the newest step. Pages are those of a paged KV pool: used by
    sequences, or kept because their prefix may be asked for again; 0 in modes without a pool. ``kv_host`` is host
    memory with keys and values of preempted requests, and how many were kept there and came back. ``drafted`` and
    ``accepted`` tokens are those of speculative decoding.
    """

    running: int = 0
    queued: int = 0
    max_requests: int = 0
    kv_tokens: int = 0
    kv_capacity_tokens: int = 0
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    prefill_s_total: float = 0.0
    decode_s_total: float = 0.0
    decode_steps_total: int = 0
    finished_total: int = 0
    cancelled_total: int = 0
    failed_total: int = 0
    cached_prompt_tokens_total: int = 0
    batch_size: int = 0
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
