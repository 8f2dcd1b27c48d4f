"""HostPages: keys and values of preempted sequences, kept on the host where copying is cheaper than computing.

Both rates are measured here and by the mode that tells of its steps: the first copy is made to know what one takes.
This file does not know who is preempted or when somebody comes back (``scheduler.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mcp_core.inference.paged.attention import PagedCache
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.sequence import Sequence
from mcp_core.inference.transfer import to_device

__all__ = ["HostPages", "TimedStep"]


class _Kept(NamedTuple):
    """A sequence's first ``tokens`` tokens; ``parts``, one a tensor of the pool, begin with its page ``first``."""

    tokens: int
    first: int
    parts: list[torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class TimedStep(NamedTuple):
    """When a step was launched, by ``HostPages.now_s``; its tokens, and those of sequences with more than one."""

    began_s: float
    tokens: int
    of_prompts: int


@dataclass(slots=True)
class _Rate:
    """Seconds a unit, over all that was measured; None before."""

    units: int = 0
    seconds: float = 0.0

    def add(self, units: int, seconds: float) -> None:
        self.units += units
        self.seconds += seconds

    @property
    def of_one(self) -> float | None:
        return self.seconds / self.units if self.units else None


@dataclass(slots=True, eq=False)
class HostPages:
    """At most ``limit_bytes`` at once. ``kept_total`` and ``returned_total`` count sequences."""

    cache: PagedCache
    pool: PagePool
    limit_bytes: int
    now_s: Callable[[], float] = time.perf_counter
    nbytes: int = field(default=0, init=False)
    kept_total: int = field(default=0, init=False)
    returned_total: int = field(default=0, init=False)
    _kept: dict[str, _Kept] = field(default_factory=dict, init=False)
    _copying: _Rate = field(default_factory=_Rate, init=False)
    _computing: _Rate = field(default_factory=_Rate, init=False)
    _on_device: list[tuple[int, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list, init=False)
    _steps: list[TimedStep] = field(default_factory=list, init=False)
    _read_s: float = field(default=0.0, init=False)

    def step_read(self, step: TimedStep, *, waited: bool) -> None:
        """The step has been read; ``waited``: the device was waited for, else it may still be at it.

        What computing again takes is known from steps that mostly computed more than one token of a sequence.
        """
        self._steps.append(step)
        if not waited:
            return
        now_s, began_s = self.now_s(), max(self._read_s, self._steps[0].began_s)
        tokens = sum(each.tokens for each in self._steps)
        if 2 * sum(each.of_prompts for each in self._steps) >= tokens:
            self._computing.add(tokens, now_s - began_s)
        self._steps, self._read_s = [], now_s

    def keep(self, sequence: Sequence) -> None:
        """Copy what the sequence alone holds, before it gives its pages up; where that pays and there is room.

        Pages that others use too are the prefix cache's, which has them when it comes back.
        """
        first = next((n for n, page in enumerate(sequence.pages) if self.pool.users(page) == 1), None)
        if first is None:
            return
        pages = sequence.pages[first : -(-sequence.computed // self.pool.page_size)]
        size = len(pages) * self.cache.page_bytes
        if self.nbytes + size > self.limit_bytes or not self._pays(sequence.computed, first, size):
            return
        kept = _Kept(sequence.computed, first, self._copied(pages, size))
        self._kept[sequence.request.id] = kept
        self.nbytes += kept.nbytes
        self.kept_total += 1

    def known(self, sequence: Sequence) -> int:
        """How many of its tokens need not be computed, ``sequence.pages`` being those of its known prefix.

        One less than all there are: the last one's logits are wanted.
        """
        kept = self._kept.get(sequence.request.id)
        if kept is None or kept.first > len(sequence.pages):  # what came before it has been given up
            return sequence.computed
        return max(sequence.computed, min(kept.tokens, len(sequence.tokens) - 1))

    def give_back(self, sequence: Sequence) -> None:
        """Copy to the sequence's pages what it does not have yet."""
        kept = self._kept[sequence.request.id]
        have = sequence.computed // self.pool.page_size
        pages = sequence.pages[have : kept.first + kept.parts[0].shape[0]]
        skipped = have - kept.first
        with self._timed(len(pages) * self.cache.page_bytes):
            places = to_device(torch.tensor(pages), self.cache.device)
            for tensor, part in zip(self.cache.tensors, kept.parts, strict=True):
                back = part[skipped : skipped + len(pages)].to(tensor.device, non_blocking=True)
                tensor.index_copy_(0, places, back)
        self.returned_total += 1

    def forget(self, request_id: str) -> None:
        """It runs again, or has ended."""
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            self.nbytes -= kept.nbytes

    def _pays(self, tokens: int, first: int, size: int) -> bool:
        """Whether copying there and back should take less than computing; a first copy tells what it takes."""
        self._hear_device()
        copying, computing = self._copying.of_one, self._computing.of_one
        if computing is None:
            return False
        return copying is None or 2 * size * copying < (tokens - first * self.pool.page_size) * computing

    def _copied(self, pages: list[int], size: int) -> list[torch.Tensor]:
        with self._timed(size):
            places = to_device(torch.tensor(pages), self.cache.device)
            return [_to_host(tensor.index_select(0, places)) for tensor in self.cache.tensors]

    @contextmanager
    def _timed(self, size: int) -> Iterator[None]:
        """What is inside copies ``size`` bytes; on a device its own clock is read, later, so that nobody waits."""
        if self.cache.device.type == "cuda":
            began, ended = (_event(), _event())
            began.record()
            yield
            ended.record()
            self._on_device.append((size, began, ended))
        else:
            began_s = self.now_s()
            yield
            self._copying.add(size, self.now_s() - began_s)

    def _hear_device(self) -> None:
        while self._on_device and self._on_device[0][2].query():  # type: ignore[no-untyped-call]
            size, began, ended = self._on_device.pop(0)
            self._copying.add(size, began.elapsed_time(ended) / 1e3)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _to_host(values: torch.Tensor) -> torch.Tensor:
    """In pinned memory, while a device goes on; a host's are there."""
    if not values.is_cuda:
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
