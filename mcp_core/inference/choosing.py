"""Choosing the next tokens of many requests from one step's logits: together where they allow it, else row by row.

A request's own random stream gives the same token in any company, as long as its logits are the same. This file
does not know how logits come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mcp_core.generation import GenerationRequest, TokenLogprob
from mcp_core.inference.sampling import Sampler, log_probabilities

__all__ = ["Choice", "Chooser", "Row"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of one row."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Whose next token is wanted, and everything before it: prompt and reply."""

    request: GenerationRequest
    tokens: Sequence[int]

    @property
    def chosen(self) -> int:
        """Tokens of the reply so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def may_end(self) -> bool:
        """Whether an end-of-reply token may be chosen now."""
        return self.request.ignore_eos or self.chosen >= self.request.min_tokens


class Chooser:
    """Keeps each request's sampler between steps; ``forget`` it when the request has ended."""

    def __init__(self, eos_ids: frozenset[int], device: torch.device) -> None:
        self._device = device
        self._eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
        self._samplers: dict[str, Sampler] = {}

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Choice]:
        """One choice for each row of ``logits [rows, vocab]``."""
        tokens = logits.argmax(-1).tolist()
        special = [index for index, row in enumerate(rows) if not self._is_plain(row)]
        sampled = self._sampled(logits, rows, special)
        return [sampled.get(index) or Choice(token) for index, token in enumerate(tokens)]

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._samplers.pop(request_id, None)

    def _is_plain(self, row: Row) -> bool:
        """Whether the likeliest token is the answer."""
        sampling = row.request.sampling
        penalties = sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty
        return sampling.temperature == 0 and not penalties and row.request.logprobs is None and row.may_end

    def _sampled(self, logits: torch.Tensor, rows: Sequence[Row], special: Sequence[int]) -> dict[int, Choice]:
        if not special:
            return {}
        picked = [(rows[index], logits[index : index + 1]) for index in special]
        tokens = [self._token(row, own) for row, own in picked]
        values = torch.cat(tokens)[:, 0].tolist()  # one wait for all of them
        choices = [
            Choice(value, self._logprob(row, own, token))
            for value, (row, own), token in zip(values, picked, tokens, strict=True)
        ]
        return dict(zip(special, choices, strict=True))

    def _token(self, row: Row, logits: torch.Tensor) -> torch.Tensor:
        """``[1, 1]``, still on the device."""
        scores = logits.float()
        if not row.may_end:
            scores = scores.index_fill(-1, self._eos, -torch.inf)
        sampler = self._sampler(row.request)
        history = torch.tensor([row.tokens], device=self._device) if sampler.needs_history else None
        return sampler.choose(scores, history)

    def _logprob(self, row: Row, logits: torch.Tensor, token: torch.Tensor) -> TokenLogprob | None:
        if row.request.logprobs is None:
            return None
        return log_probabilities(logits, token[0], row.request.logprobs)[0]

    def _sampler(self, request: GenerationRequest) -> Sampler:
        if request.id not in self._samplers:
            self._samplers[request.id] = Sampler(request.sampling, len(request.prompt), self._device)
        return self._samplers[request.id]
