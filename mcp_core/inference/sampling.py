"""Choosing the next tokens from logits: many rows at once, each with its own settings and random stream.

The filters mean what ``generate`` means by them, in its order; penalties are transformers' own. This file does not
know about requests, caches or text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import LogitsProcessor

from mcp_core.generation import Sampling, TokenLogprob
from mcp_core.inference.transfer import to_device

__all__ = ["Draw", "Sampler", "log_probabilities", "sample"]


class Draw(NamedTuple):
    """What one row is sampled by; ``uniform`` in [0, 1) is its random number."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float

    @property
    def is_cut(self) -> bool:
        """Whether its unlikely tokens are left out by rank or by sum, which needs them sorted."""
        return self.top_k > 0 or self.top_p < 1


class Sampler:
    """The chooser of one request: its penalties and its own random stream, which no other request moves."""

    def __init__(self, sampling: Sampling, prompt_tokens: int) -> None:
        self._sampling = sampling
        self._penalties = _penalties(sampling, prompt_tokens)
        self._random = random.Random(sampling.seed)
        self._newest = (-1, 0.0)  # a token's position in the reply, and its number

    @property
    def needs_history(self) -> bool:
        """Whether choosing looks at earlier tokens; without penalties it does not."""
        return len(self._penalties) > 0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self._sampling.temperature == 0

    def draw(self, position: int) -> Draw:
        """The settings with the number of the reply's token at ``position``: the stream's next one, or the newest
        again, where the step that asked for it failed (others' memory must not move this stream either).
        """
        own = self._sampling
        if position != self._newest[0]:
            self._newest = position, self._random.random()
        return Draw(own.temperature, own.top_k, own.top_p, own.min_p, self._newest[1])

    def choose(self, logits: torch.Tensor, history: torch.Tensor | None, position: int) -> torch.Tensor:
        """The reply's token ``[1]`` at ``position`` for ``logits [1, vocab]`` float; ``history [1, tokens]`` is
        prompt + reply.
        """
        if self._penalties:
            logits = self._penalties(history, logits)
        return logits.argmax(-1) if self.is_greedy else sample(logits, [self.draw(position)])


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """One token a row of ``logits [rows, vocab]`` float; ``[rows]``, on their device, without waiting for it.

    Temperature, top-k, top-p, min-p as transformers' warpers, then the inverse of the cumulative distribution at
    the row's own random number: the same number and logits give the same token in any company. Rows with top-k or
    top-p are sorted, the others not, so that neither decides in which order the other's distribution is summed.
    """
    groups = [[index for index, draw in enumerate(draws) if draw.is_cut is cut] for cut in (False, True)]
    tokens = [_drawn(logits, draws, at) for at in groups if at]
    if len(tokens) == 1:
        return tokens[0]
    places = to_device(torch.tensor(groups[0] + groups[1]), logits.device)
    joined = torch.cat(tokens)
    return torch.empty_like(joined).index_copy_(0, places, joined)


def _drawn(logits: torch.Tensor, draws: Sequence[Draw], at: Sequence[int]) -> torch.Tensor:
    """The tokens of the rows ``at``, all of one kind."""
    if len(at) < len(draws):
        logits, draws = logits[to_device(torch.tensor(at), logits.device)], [draws[index] for index in at]
    settings = to_device(torch.tensor(draws, dtype=torch.float32), logits.device)
    temperature, top_k, top_p, min_p, uniform = settings[:, :, None].unbind(1)
    scores = (logits - logits.amax(-1, keepdim=True)) / temperature  # the best is 0 however small the temperature
    order, whole = None, scores.logsumexp(-1, keepdim=True)
    if draws[0].is_cut:
        scores, order = _ranked(scores, whole, draws)
        scores = _nucleus(_best(scores, top_k.long()), whole, top_k, top_p)
    probabilities = (scores - whole).exp()
    probabilities = probabilities * (probabilities >= min_p * probabilities.amax(-1, keepdim=True))
    picked = _inverse(probabilities, uniform)
    return (picked if order is None else order.gather(-1, picked))[:, 0]


# On a host a whole vocabulary takes longer to sort than to compute; so few nearly always hold the nucleus.
_CANDIDATES = 1024


def _ranked(scores: torch.Tensor, whole: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """A row's scores and their tokens, falling, at least as many as its draw can choose from."""
    vocabulary = scores.shape[-1]
    most = max(draw.top_k for draw in draws)
    if all(draw.top_k > 0 for draw in draws) and most < vocabulary:
        return _sorted_best(scores, most)
    if not scores.is_cuda and max(most, _CANDIDATES) < vocabulary:
        values, order = _sorted_best(scores, max(most, _CANDIDATES))
        held = (values - whole).exp().sum(-1)
        if all(draw.top_k or part >= draw.top_p for draw, part in zip(draws, held.tolist(), strict=True)):
            return values, order
    return scores.sort(stable=True, dim=-1, descending=True)


def _sorted_best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` best of each row; equal ones in the vocabulary's order, as a stable sort has them."""
    tokens = scores.topk(count, dim=-1).indices.sort(-1).values
    values, places = scores.gather(-1, tokens).sort(stable=True, dim=-1, descending=True)
    return values, tokens.gather(-1, places)


def _best(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Without those below each row's number ``top_k``; 0 keeps all. ``scores`` fall along a row."""
    last = torch.where(top_k > 0, top_k.clamp(max=scores.shape[-1]), scores.shape[-1]) - 1
    return scores.masked_fill(scores < scores.gather(-1, last), -torch.inf)


def _nucleus(scores: torch.Tensor, whole: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Without those whose predecessors hold ``top_p`` already; the first stays. ``scores`` fall along a row.

    ``whole`` is the logarithm of what all of a row's scores hold; with top-k only what is left counts.
    """
    whole = torch.where(top_k > 0, scores.logsumexp(-1, keepdim=True), whole)
    probabilities = (scores - whole).exp()
    before = probabilities.cumsum(-1) - probabilities
    before[:, 0] = -1
    return scores.masked_fill((before >= top_p) & (top_p < 1), -torch.inf)


def _inverse(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative probability exceeds ``uniform`` of the whole; never one of probability 0."""
    cumulative = probabilities.cumsum(-1)
    whole = cumulative[:, -1:]
    wanted = torch.minimum(uniform * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    # Where logits are not numbers nothing is found, and a token beyond the vocabulary would break the device.
    return torch.searchsorted(cumulative, wanted, right=True).clamp(max=probabilities.shape[-1] - 1)


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor, top: int) -> list[TokenLogprob]:
    """Natural log-probabilities of ``tokens [n]`` under ``logits [n, vocab]``, with the ``top`` best of each."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    values, indices = logprobs.topk(top, dim=-1)
    alternatives = [tuple(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]
    rows = zip(tokens.tolist(), chosen, alternatives, strict=True)
    return [TokenLogprob(token, logprob, best) for token, logprob, best in rows]


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
