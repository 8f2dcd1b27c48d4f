"""Choosing the next token from logits. Filters are transformers' own, so that they mean what ``generate`` means.

This file does not know about requests, caches or text.
"""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import LogitsProcessor

from mcp_core.generation import Sampling, TokenLogprob

__all__ = ["Sampler", "log_probabilities"]


class Sampler:
    """The chooser of one request: its filters and its own random stream."""

    def __init__(self, sampling: Sampling, prompt_tokens: int, device: torch.device) -> None:
        self._greedy = sampling.temperature == 0
        self._penalties = _penalties(sampling, prompt_tokens)
        self._warpers = LogitsProcessorList([] if self._greedy else _warpers(sampling))
        self._generator = torch.Generator(device=device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def needs_history(self) -> bool:
        """Whether choosing looks at earlier tokens; without penalties it does not."""
        return len(self._penalties) > 0

    def choose(self, logits: torch.Tensor, history: torch.Tensor | None) -> torch.Tensor:
        """The next token ``[1, 1]`` for ``logits [1, vocab]`` float; ``history [1, tokens]`` is prompt + reply."""
        if self._penalties:
            logits = self._penalties(history, logits)
        if self._greedy:
            return logits.argmax(-1, keepdim=True)
        probabilities = self._warpers(history, logits).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=self._generator)


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor, top: int) -> list[TokenLogprob]:
    """Natural log-probabilities of ``tokens [n]`` under ``logits [n, vocab]``, with the ``top`` best of each."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    values, indices = logprobs.topk(top, dim=-1)
    alternatives = [tuple(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]
    rows = zip(tokens.tolist(), chosen, alternatives, strict=True)
    return [TokenLogprob(token, logprob, best) for token, logprob, best in rows]


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    """In the order in which ``generate`` applies them."""
    warpers: list[LogitsProcessor] = []
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers


def _penalties(sampling: Sampling, prompt_tokens: int) -> LogitsProcessorList:
    penalties = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        penalties.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.frequency_penalty or sampling.presence_penalty:
        penalties.append(_CountPenalty(sampling.frequency_penalty, sampling.presence_penalty, prompt_tokens))
    return penalties


class _CountPenalty(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's penalties: logits fall by frequency x count + presence x (count > 0), over the reply's tokens."""

    def __init__(self, frequency: float, presence: float, prompt_tokens: int) -> None:
        self._frequency, self._presence, self._prompt_tokens = frequency, presence, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids [1, tokens]``, ``scores [1, vocab]``."""
        counts = torch.zeros_like(scores)
        reply = input_ids[:, self._prompt_tokens :]
        counts.scatter_add_(1, reply, torch.ones_like(reply, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0).to(scores.dtype)
