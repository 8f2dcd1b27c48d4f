"""Choosing the next tokens of many requests from one step's logits: together where they allow it, else row by row.

A request's own random stream gives the same token in any company, as long as its logits are the same. This file
does not know how logits come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mcp_core.generation import GenerationRequest, TokenLogprob
from mcp_core.inference.sampling import Sampler, log_probabilities, sample
from mcp_core.inference.transfer import Fetched, to_device
from mcp_core.sections import profile_section

__all__ = ["Choice", "Chooser", "Chosen", "Row"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of one row."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Whose next token is wanted, and everything known before it: prompt and reply.

    ``unread`` tokens of the reply have been chosen on the device and are not in ``tokens`` yet.
    """

    request: GenerationRequest
    tokens: Sequence[int]
    unread: int = 0

    @property
    def chosen(self) -> int:
        """Tokens of the reply so far."""
        return len(self.tokens) + self.unread - len(self.request.prompt)

    @property
    def may_end(self) -> bool:
        """Whether an end-of-reply token may be chosen now."""
        return self.request.ignore_eos or self.chosen >= self.request.min_tokens


class Chosen:
    """The tokens of one step: on the device at once, on the host when they are read."""

    def __init__(self, tokens: torch.Tensor, logits: torch.Tensor, rows: Sequence[Row]) -> None:
        self.tokens = tokens
        self._fetched = Fetched(tokens)
        self._logits = logits
        self._tops = [(index, row.request.logprobs) for index, row in enumerate(rows)]

    def read(self) -> list[Choice]:
        """One choice a row. Log-probabilities need the step's logits: read them before the next step."""
        with profile_section("sampling"):
            return self._read()

    def _read(self) -> list[Choice]:
        tokens = self._fetched.wait()
        logprobs = {index: self._logprob(index, top) for index, top in self._tops if top is not None}
        return [Choice(token, logprobs.get(index)) for index, token in enumerate(tokens)]

    def _logprob(self, index: int, top: int) -> TokenLogprob:
        row = slice(index, index + 1)
        return log_probabilities(self._logits[row], self.tokens[row], top)[0]


class Chooser:
    """Keeps each request's sampler between steps; ``forget`` it when the request has ended."""

    def __init__(self, eos_ids: frozenset[int], device: torch.device) -> None:
        self._device = device
        self._eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
        self._samplers: dict[str, Sampler] = {}

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Choice]:
        """One choice for each row of ``logits [rows, vocab]``, read."""
        return self.launch(logits, logits.argmax(-1), rows).read()

    def launch(self, logits: torch.Tensor, best: torch.Tensor, rows: Sequence[Row]) -> Chosen:
        """As ``choose``, without waiting for the device; ``best [rows]`` is the likeliest token of each row."""
        with profile_section("sampling"):
            return self._launch(logits, best, rows)

    def _launch(self, logits: torch.Tensor, best: torch.Tensor, rows: Sequence[Row]) -> Chosen:
        alone = [index for index, row in enumerate(rows) if self._is_alone(row)]
        drawn = [index for index, row in enumerate(rows) if not self._is_alone(row) and not self._is_greedy(row)]
        tokens = best
        if drawn:
            tokens = self._put(tokens, drawn, self._sampled(logits, [rows[index] for index in drawn], drawn))
        if alone:
            tokens = self._put(tokens, alone, torch.cat([self._own(logits, rows[index], index) for index in alone]))
        return Chosen(tokens, logits, rows)

    def can_wait(self, request: GenerationRequest) -> bool:
        """Whether its next token can be chosen before the last one was read, and be read a step later."""
        return request.logprobs is None and not self._sampler(request).needs_history

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._samplers.pop(request_id, None)

    def _is_alone(self, row: Row) -> bool:
        """Whether its logits are changed before the choice, in a way of its own."""
        return not row.may_end or self._sampler(row.request).needs_history

    def _is_greedy(self, row: Row) -> bool:
        return self._sampler(row.request).is_greedy

    def _sampled(self, logits: torch.Tensor, rows: Sequence[Row], at: Sequence[int]) -> torch.Tensor:
        wanted = logits if len(at) == logits.shape[0] else logits[self._places(at)]
        return sample(wanted.float(), [self._sampler(row.request).draw(row.chosen) for row in rows])

    def _own(self, logits: torch.Tensor, row: Row, index: int) -> torch.Tensor:
        """``[1]``, still on the device."""
        scores = logits[index : index + 1].float()
        if not row.may_end:
            scores = scores.index_fill(-1, self._eos, -torch.inf)
        sampler = self._sampler(row.request)
        history = torch.tensor([row.tokens], device=self._device) if sampler.needs_history else None
        return sampler.choose(scores, history, row.chosen)

    def _put(self, tokens: torch.Tensor, at: Sequence[int], values: torch.Tensor) -> torch.Tensor:
        return values if len(at) == tokens.shape[0] else tokens.index_copy(0, self._places(at), values)

    def _places(self, at: Sequence[int]) -> torch.Tensor:
        return to_device(torch.tensor(at), self._device)

    def _sampler(self, request: GenerationRequest) -> Sampler:
        if request.id not in self._samplers:
            self._samplers[request.id] = Sampler(request.sampling, len(request.prompt))
        return self._samplers[request.id]
