"""StaticBatch: batching mode static. Up to N requests are padded to one length and run together until all end.

A batch starts when it is full or its oldest request has waited long enough; who comes later waits for the next one.
This file does not know how tokens are chosen (``choosing.py``) or who asks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mcp_core.generation import GenerationRequest
from mcp_core.inference.choosing import Choice, Chooser, Row
from mcp_core.inference.finish import finish_of
from mcp_core.inference.kv_cache import CacheFactory, last_of
from mcp_core.inference.mode import ModeFigures, Outcome, StepOutcome
from mcp_core.inference.one_by_one import OneByOne
from mcp_core.models.kv_pool import MOST_RUNNING
from mcp_core.recipe import Batching

__all__ = ["StaticBatch"]

_PAD = 0


@dataclass(slots=True, eq=False)
class _Member:
    """One row of the batch; it keeps its place when its request has ended."""

    request: GenerationRequest
    tokens: list[int]
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    """``visible [rows, columns]`` is 1 where a column holds a token of its row, 0 for padding on its left."""

    members: list[_Member]
    cache: Any
    visible: torch.Tensor
    newest: torch.Tensor = field(init=False)


class StaticBatch:
    """``size`` and ``max_wait_s`` may be changed between steps. Prompts to be scored run alone, by ``scorer``."""

    name = "static"
    kernel = None
    preparation = None

    def __init__(
        self,
        model: Any,
        scorer: OneByOne,
        new_cache: CacheFactory,
        eos_ids: frozenset[int],
        longest: int,
        size: int,
        max_wait_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.longest = longest
        self.size = size
        self.max_wait_s = max_wait_s
        self._now_s = now_s
        self._model = model
        self._scorer = scorer
        self._new_cache = new_cache
        self._eos_ids = eos_ids
        self._device: torch.device = next(model.parameters()).device
        self._chooser = Chooser(eos_ids, self._device)
        self._waiting: deque[tuple[float, GenerationRequest]] = deque()
        self._batch: _Batch | None = None
        self._at_work: tuple[GenerationRequest, ...] = ()

    @property
    def room(self) -> int:
        """Free places in the batch that is being filled; none while one runs."""
        return 0 if self._runs else self.size - len(self._waiting)

    def add(self, request: GenerationRequest) -> None:
        """Queue it."""
        self._waiting.append((self._now_s(), request))

    def drop(self, request_id: str) -> GenerationRequest | None:
        """Forget it; in a running batch its row goes on as padding."""
        for member in self._batch.members if self._batch else ():
            if member.request.id == request_id and not member.ended:
                self._end(member)
                return member.request
        for entry in self._waiting:
            if entry[1].id == request_id:
                self._waiting.remove(entry)
                return entry[1]
        return self._scorer.drop(request_id)

    @property
    def wait_s(self) -> float:
        """How long to wait for more requests before the next step is worth calling."""
        if self._runs or not self._waiting or len(self._waiting) >= self.size:
            return 0.0
        return max(0.0, self._waiting[0][0] + self.max_wait_s - self._now_s())

    def step(self) -> StepOutcome:
        """A token for every row, or a new batch's first tokens; nothing while a batch is being filled."""
        if self._batch is not None:
            return self._decode(self._batch)
        if self._scorer.held():
            return self._score()
        if not self._waiting or self.wait_s > 0:
            return StepOutcome()
        if self._waiting[0][1].prompt_logprobs is not None:
            self._scorer.add(self._waiting.popleft()[1])
            return self._score()
        return self._start([self._waiting.popleft()[1] for _ in range(self._fitting())])

    def at_work(self) -> tuple[GenerationRequest, ...]:
        """The batch's, or the one that is scored."""
        return self._at_work

    def held(self) -> tuple[GenerationRequest, ...]:
        """The running batch first."""
        running = [member.request for member in self._members() if not member.ended]
        return (*running, *self._scorer.held(), *(request for _, request in self._waiting))

    def figures(self) -> ModeFigures:
        """Padding counts: it takes memory."""
        running = sum(not member.ended for member in self._members()) + len(self._scorer.held())
        held = self._batch.visible.numel() if self._batch else 0
        return ModeFigures(running, len(self._waiting), held, self.longest * self.size)

    def pause(self) -> StepOutcome:
        """No step is ever under way."""
        return StepOutcome()

    def set_limits(self, batching: Batching) -> None:
        """The size of the next batch, and how long to wait until it is full."""
        self.size, self.max_wait_s = min(batching.max_requests, MOST_RUNNING), batching.max_wait_ms / 1e3

    def close(self) -> None:
        """Its cache goes with it."""
        self._batch = None
        self._waiting.clear()

    @property
    def _runs(self) -> bool:
        return self._batch is not None or bool(self._scorer.held())

    def _score(self) -> StepOutcome:
        """The prompt of the one that is scored, or one more token of its reply."""
        self._at_work = self._scorer.held()
        return self._scorer.step()

    def _members(self) -> list[_Member]:
        return self._batch.members if self._batch else []

    def _fitting(self) -> int:
        """How many of the first waiting requests fit into one batch: none to be scored among them, and the longest
        padded prompt leaves room for the longest reply."""
        prompt = reply = count = 0
        for _, request in list(self._waiting)[: self.size]:
            prompt, reply = max(prompt, len(request.prompt)), max(reply, request.max_tokens)
            if count and (request.prompt_logprobs is not None or prompt + reply > self.longest):
                break
            count += 1
        return count

    def _start(self, requests: list[GenerationRequest]) -> StepOutcome:
        members = [_Member(request, list(request.prompt)) for request in requests]
        width = max(len(request.prompt) for request in requests)
        rows = [[_PAD] * (width - len(member.tokens)) + member.tokens for member in members]
        seen = [[0] * (width - len(member.tokens)) + [1] * len(member.tokens) for member in members]
        self._batch = batch = _Batch(members, self._new_cache(), torch.tensor(seen, device=self._device))
        outcomes = self._extend(batch, torch.tensor(rows, device=self._device))
        started = tuple((request, 0) for request in requests)
        return StepOutcome(tuple(outcomes), started, sum(len(r.prompt) for r in requests), len(requests))

    def _decode(self, batch: _Batch) -> StepOutcome:
        batch.visible = torch.nn.functional.pad(batch.visible, (0, 1), value=1)
        return StepOutcome(tuple(self._extend(batch, batch.newest)), batch=len(batch.members))

    @torch.inference_mode()
    def _extend(self, batch: _Batch, tokens: torch.Tensor) -> list[Outcome]:
        """One forward pass of ``tokens [rows, columns]`` after what the cache holds."""
        self._at_work = tuple(member.request for member in batch.members if not member.ended)
        positions = (batch.visible.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        logits = self._model(
            tokens,
            attention_mask=batch.visible,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=last_of(tokens.shape[1], 1, tokens.device),
        ).logits[:, -1]
        live = [index for index, member in enumerate(batch.members) if not member.ended]
        rows = [Row(batch.members[index].request, batch.members[index].tokens) for index in live]
        choices = self._chooser.choose(logits[live], rows)
        outcomes = [self._take(batch.members[index], choice) for index, choice in zip(live, choices, strict=True)]
        newest = [[_PAD if member.ended else member.tokens[-1]] for member in batch.members]
        batch.newest = torch.tensor(newest, device=self._device)
        if all(member.ended for member in batch.members):
            self._batch = None
        return outcomes

    def _take(self, member: _Member, choice: Choice) -> Outcome:
        member.tokens.append(choice.token)
        count = len(member.tokens) - len(member.request.prompt)
        finish = finish_of(member.request, choice.token, count, self._eos_ids, self.longest)
        if finish is not None:
            self._end(member)
        return Outcome(member.request, choice.token, finish, choice.logprob)

    def _end(self, member: _Member) -> None:
        member.ended = True
        self._chooser.forget(member.request.id)
        if self._batch is not None and all(each.ended for each in self._batch.members):
            self._batch = None
