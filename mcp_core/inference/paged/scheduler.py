"""Scheduler: which sequences take part in the next step, and with how many tokens each.

Running sequences come first, a token each; what is left of the step's budget goes to prompts, in order of arrival,
in chunks. When the pool is full the youngest running sequence gives up its pages; what was in them is kept
elsewhere where that pays, or computed again later: nothing is lost. A step may be planned before the tokens of the
one before it are known. Pure bookkeeping: this file does not know models, tensors or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.sequence import Sequence

__all__ = ["Keeper", "Part", "Scheduler"]


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` tokens of one sequence, from its first that is not computed."""

    sequence: Sequence
    count: int

    @property
    def complete(self) -> bool:
        """Whether the sequence's next token can be chosen after it."""
        return self.count == self.sequence.remaining


class Keeper(Protocol):
    """Keeps what is in the pages of preempted sequences, where that pays; ``host_pages.HostPages``."""

    def keep(self, sequence: Sequence, /) -> None:
        """It is about to give its pages up."""

    def known(self, sequence: Sequence, /) -> int:
        """How many of its tokens need not be computed; it has the pages of its known prefix."""

    def give_back(self, sequence: Sequence, /) -> None:
        """It has pages for all that ``known`` said."""

    def forget(self, request_id: str, /) -> None:
        """It runs again, or has ended."""


class _Nobody:
    """Keeps nothing."""

    def keep(self, sequence: Sequence) -> None: ...

    def known(self, sequence: Sequence) -> int:
        return sequence.computed

    def give_back(self, sequence: Sequence) -> None: ...

    def forget(self, request_id: str) -> None: ...


@dataclass(slots=True)
class Scheduler:
    """``step_tokens`` bounds the tokens of a step, ``max_running`` the sequences that hold pages."""

    pool: PagePool
    step_tokens: int
    max_running: int
    keeper: Keeper = field(default_factory=_Nobody)
    preemptions: int = field(default=0, init=False)
    _waiting: deque[Sequence] = field(default_factory=deque, init=False)
    _running: list[Sequence] = field(default_factory=list, init=False)  # oldest first

    @property
    def waiting(self) -> int:
        """Sequences without pages."""
        return len(self._waiting)

    @property
    def first_waiting(self) -> GenerationRequest | None:
        """Whose turn to get pages it is."""
        return self._waiting[0].request if self._waiting else None

    @property
    def running(self) -> int:
        """Sequences with pages."""
        return len(self._running)

    @property
    def tokens_held(self) -> int:
        """Tokens of running sequences that are in the pool."""
        return sum(sequence.computed for sequence in self._running)

    @property
    def longest(self) -> int:
        """The longest sequence that the pool can hold, tokens."""
        return self.pool.capacity * self.pool.page_size

    def set_most(self, running: int) -> None:
        """So many may run from the next step on, with a token each in it at least."""
        self.max_running = running
        self.step_tokens = max(self.step_tokens, running)

    def requests(self) -> tuple[GenerationRequest, ...]:
        """Every request that has not ended: running ones first, oldest first."""
        return tuple(sequence.request for sequence in (*self._running, *self._waiting))

    def add(self, request: GenerationRequest, longest: int | None = None) -> None:
        """Queue a request; it must fit the pool. ``longest`` bounds prompt + reply, beside the pool."""
        self._waiting.append(Sequence.of(request, min(longest or self.longest, self.longest)))

    def plan(self) -> list[Part]:
        """The next step's parts, pages reserved: decoding sequences first. Empty when there is nothing to do.

        Every token is known (none ``unread``): a sequence may have to give its pages up.
        """
        while True:
            parts = list(self._decoding())
            parts += self._prefilling(self.step_tokens - len(parts))
            if parts or len(self._running) < 2:
                return parts
            self._preempt(self._running[-1])  # prompts that each hold a part of the pool, and none can go on

    def plan_ahead(self) -> list[Part]:
        """As ``plan``, while tokens are unread; empty also where that needs them to be known first."""
        decoding = [each for each in self._running if each.remaining == 1 and not each.is_chosen]
        if not all(sequence.reserve(self.pool, 1) for sequence in decoding):
            return []
        parts = [Part(sequence, 1) for sequence in decoding]
        return [*parts, *self._prefilling(self.step_tokens - len(parts))]

    def done(self, part: Part) -> None:
        """The part has been computed."""
        part.sequence.advance(self.pool, part.count)

    def read(self, sequence: Sequence, token: int) -> None:
        """The oldest of its tokens that were chosen and not known is this one."""
        sequence.read(self.pool, token)

    def end(self, sequence: Sequence) -> None:
        """The sequence has ended, by whatever way."""
        sequence.ended = True
        sequence.end(self.pool)
        self._running.remove(sequence)

    def drop(self, request_id: str) -> Sequence | None:
        """Take a sequence out, wherever it is; None when it is not here."""
        for sequence in (*self._running, *self._waiting):
            if sequence.request.id == request_id:
                if sequence in self._running:
                    self.end(sequence)
                else:
                    self.keeper.forget(request_id)
                    sequence.ended = True
                    self._waiting.remove(sequence)
                return sequence
        return None

    def preempt_all(self) -> None:
        """Every running sequence gives its pages up and waits again, oldest first: after a failed step."""
        while self._running:
            self._preempt(self._running[-1])

    def _decoding(self) -> Iterator[Part]:
        """One token of each running sequence whose prompt is computed; the youngest make room where needed."""
        for sequence in list(self._running):
            if sequence.remaining != 1 or sequence not in self._running:
                continue
            while not sequence.reserve(self.pool, 1):
                victim = self._running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                yield Part(sequence, 1)

    def _prefilling(self, budget: int) -> Iterator[Part]:
        for sequence in [each for each in self._running if each.remaining > 1]:
            if budget <= 0:
                return
            count = min(budget, sequence.remaining)
            if sequence.reserve(self.pool, count):
                budget -= count
                yield Part(sequence, count)
        while budget > 0 and self._waiting and len(self._running) < self.max_running:
            part = self._admit(self._waiting[0], budget)
            if part is None:
                return
            budget -= part.count
            yield part

    def _admit(self, sequence: Sequence, budget: int) -> Part | None:
        """Begin the first waiting sequence, if the pool holds its next chunk and a page beyond."""
        sequence.begin(self.pool, self.pool.root(sequence.request.tenant))
        kept = self.keeper.known(sequence) - sequence.computed
        count = min(budget, sequence.remaining - kept)
        new, spare = kept + count, 1 if self._running else 0
        if self.pool.available < self._pages_for(sequence, new) + spare or not sequence.reserve(self.pool, new):
            sequence.end(self.pool)
            return None
        if kept:
            self.keeper.give_back(sequence)
            sequence.resume(self.pool, sequence.computed + kept)
        self.keeper.forget(sequence.request.id)
        self._waiting.popleft()
        self._running.append(sequence)
        return Part(sequence, count)

    def _pages_for(self, sequence: Sequence, count: int) -> int:
        return -(-(sequence.computed + count) // self.pool.page_size) - len(sequence.pages)

    def _preempt(self, sequence: Sequence) -> None:
        self.keeper.keep(sequence)
        sequence.end(self.pool)
        sequence.preemptions += 1
        self.preemptions += 1
        self._running.remove(sequence)
        self._waiting.appendleft(sequence)
