"""Decoding one sequence with an unmodified transformers model: prefill, then one token a step.

This file does not know about queues, threads or HTTP (``engine.py`` and ``serving/`` do).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mcp_core.generation import PREFILL_CHUNK_TOKENS, FinishReason, GenerationRequest, TokenLogprob
from mcp_core.inference.choosing import Chooser, Row
from mcp_core.inference.finish import finish_of
from mcp_core.inference.kv_cache import NoCache, extend
from mcp_core.inference.sampling import log_probabilities
from mcp_core.inference.speculation import Proposer

__all__ = ["Decoder", "Step"]

# Scoring a prompt holds logits of a whole chunk: tokens x vocabulary floats.
_SCORED_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Step:
    """One step's outcome: a token, or only the end. ``seconds`` is the step's duration on the host's clock."""

    token: int | None
    finish: FinishReason | None
    seconds: float
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class Decoder:
    """One model's decoding loop. ``is_cancelled`` is asked between forward passes.

    With a ``proposer`` one pass checks several guessed tokens; that needs a cache that can be cut back (dynamic).
    """

    def __init__(
        self, model: Any, eos_ids: frozenset[int], max_context: int, proposer: Proposer | None = None
    ) -> None:
        self.proposer = proposer
        self._model = model
        self._device: torch.device = next(model.parameters()).device
        self._eos_ids = eos_ids
        self._max_context = max_context
        self._chunk = PREFILL_CHUNK_TOKENS[self._device.type]

    @torch.inference_mode()
    def steps(self, request: GenerationRequest, cache: Any, is_cancelled: Callable[[], bool]) -> Iterator[Step]:
        """Prefill, then decode; the first step carries the first token (or, with max_tokens 0, none)."""
        started = time.perf_counter()
        prompt = torch.tensor([request.prompt], dtype=torch.long, device=self._device)
        logits, prompt_logprobs = self._prefill(prompt, cache, request.prompt_logprobs, is_cancelled)
        if logits is None:
            yield Step(None, "cancelled", time.perf_counter() - started)
            return
        if request.max_tokens == 0:
            yield Step(None, "length", time.perf_counter() - started, prompt_logprobs=prompt_logprobs)
            return
        chooser, tokens = Chooser(self._eos_ids, self._device), list(request.prompt)
        ahead = _Ahead(self.proposer)
        while True:
            choice = chooser.choose(logits, [Row(request, tokens)])[0]
            tokens.append(choice.token)
            count = len(tokens) - len(request.prompt)
            finish = finish_of(request, choice.token, count, self._eos_ids, self._max_context)
            yield Step(choice.token, finish, time.perf_counter() - started, choice.logprob, prompt_logprobs)
            if finish is not None:
                return
            if is_cancelled():
                yield Step(None, "cancelled", 0.0)
                return
            started, prompt_logprobs = time.perf_counter(), None
            checked = ahead.after(choice.token, cache)
            if checked is None:
                guessed = ahead.guess(tokens, self._room(request, count))
                asked = torch.tensor([[choice.token, *guessed]], device=self._device)
                checked = ahead.check(guessed, self._forward(asked, cache, logits_to_keep=1 + len(guessed)))
            logits = checked

    def _room(self, request: GenerationRequest, count: int) -> int:
        """How many tokens may be guessed after ``count`` chosen ones: the pass itself gives one more."""
        in_context = self._max_context - len(request.prompt) - count
        return max(0, min(request.max_tokens - count, in_context) - 1)

    def _prefill(
        self, prompt: torch.Tensor, cache: Any, top: int | None, is_cancelled: Callable[[], bool]
    ) -> tuple[torch.Tensor | None, tuple[TokenLogprob, ...] | None]:
        """Last position's logits ``[1, vocab]`` (None when cancelled) and the prompt's own log-probabilities."""
        last: torch.Tensor | None = None
        scored: list[TokenLogprob] = []
        size = self._chunk if top is None else min(self._chunk, _SCORED_CHUNK)
        if isinstance(cache, NoCache) and top is None:
            size = prompt.shape[1]  # without a cache a second chunk would compute the first one again
        for start in range(0, prompt.shape[1], size):
            if is_cancelled():
                return None, None
            chunk = prompt[:, start : start + size]
            logits = self._forward(chunk, cache, logits_to_keep=1 if top is None else 0)
            if top is not None:
                scored += _score_chunk(prompt, start, last, logits, top)
            last = logits[:, -1]
        return last, None if top is None else tuple(scored)

    def _forward(self, tokens: torch.Tensor, cache: Any, logits_to_keep: int) -> torch.Tensor:
        return extend(self._model, tokens, cache, logits_to_keep)


class _Ahead:
    """Logits of guessed tokens that have been computed and not yet been compared with what is chosen."""

    def __init__(self, proposer: Proposer | None) -> None:
        self._proposer = proposer
        self._guessed: list[int] = []
        self._rows: list[torch.Tensor] = []
        if proposer is not None:
            proposer.begin()

    def after(self, chosen: int, cache: Any) -> torch.Tensor | None:
        """Logits after ``chosen`` if it was guessed; else None, and the cache is cut back to what was chosen."""
        if self._proposer is None:
            return None
        if self._guessed and self._guessed[0] == chosen:
            self._proposer.count.accepted += 1
            self._guessed.pop(0)
            return self._rows.pop(0)
        if self._guessed:
            cache.crop(-len(self._guessed))  # negative: that many fewer
        self._guessed, self._rows = [], []
        return None

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """What may follow ``tokens``, the prompt and the reply so far."""
        return self._proposer.propose(tokens, most) if self._proposer is not None else []

    def check(self, guessed: list[int], rows: torch.Tensor) -> torch.Tensor:
        """Keep the logits ``rows [1, 1 + guessed, vocab]`` of the guesses; returns those after the chosen token."""
        if self._proposer is not None:
            self._proposer.count.drafted += len(guessed)
            self._guessed, self._rows = list(guessed), [rows[:, index] for index in range(1, rows.shape[1])]
        return rows[:, 0]


def _score_chunk(
    prompt: torch.Tensor, start: int, before: torch.Tensor | None, logits: torch.Tensor, top: int
) -> list[TokenLogprob]:
    """Log-probabilities of the chunk's own tokens; ``before`` is the position before it (None at the start)."""
    stop = start + logits.shape[1]
    predicting = logits[0, :-1] if before is None else torch.cat([before, logits[0, :-1]])
    targets = prompt[0, start + 1 if before is None else start : stop]
    first = [TokenLogprob(int(prompt[0, 0]), None)] if before is None else []
    return first + log_probabilities(predicting, targets, top)
