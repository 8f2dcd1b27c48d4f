"""Arrivals: when the requests of a Workload are due, and which of them belong to one chat.

The same (seed, repeat) always gives the same times. This file does not know what a request says or how it is sent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import count

from mcp_core import recordings
from mcp_core.workload import Workload

__all__ = ["arrival_times", "chats", "think_times"]


def arrival_times(workload: Workload) -> Iterator[float]:
    """Seconds after the beginning at which each request, or each chat's first turn, is due; without an end, but for
    a replay's. Of a closed loop there are none to give: it sends when replies have ended.

    Raises InputError when a recording is not kept here.
    """
    arrivals, draw = workload.arrivals, _generator(workload, "arrivals")
    if arrivals.kind == "replay":
        assert workload.prompts.sha256 is not None
        recorded = recordings.get(workload.prompts.sha256).requests
        return iter([each.at_s / arrivals.speed for each in recorded])
    assert arrivals.rate_s is not None, "a closed loop has no times"
    if arrivals.kind == "ramp":
        return _ramp(workload)
    if arrivals.kind == "constant":
        rate_s = arrivals.rate_s
        return (number / rate_s for number in count())
    shape = arrivals.burstiness if arrivals.kind == "bursty" else 1.0
    return _gamma(draw, shape, arrivals.rate_s)


def chats(workload: Workload) -> Iterator[range]:
    """Indexes of the requests of each chat in turn; without chats each request is one. Ends at ``requests`` unless
    time alone ends the workload: the last chat is cut."""
    last = None if workload.duration_s is not None else workload.requests
    turns, begin = workload.chats.turns if workload.chats else None, 0
    for number in count():
        if last is not None and begin >= last:
            return
        length = turns.draw(_generator(workload, f"turns/{number}")) if turns else 1
        end = begin + length if last is None else min(last, begin + length)
        yield range(begin, end)
        begin = end


def think_times(workload: Workload, first_index: int) -> Iterator[float]:
    """Seconds to wait before each further turn of the chat that begins at that index."""
    plan = workload.chats
    if plan is None or not plan.think_s:
        while True:
            yield 0.0
    draw = _generator(workload, f"think/{first_index}")
    while True:
        yield plan.think_s if plan.think == "fixed" else draw.expovariate(1 / plan.think_s)


def _gamma(draw: random.Random, shape: float, rate_s: float) -> Iterator[float]:
    """Gaps of mean 1 / rate; of shape 1 they are exponential, which makes arrivals Poisson."""
    at_s = 0.0
    while True:
        at_s += draw.gammavariate(shape, 1 / (shape * rate_s))
        yield at_s


def _ramp(workload: Workload) -> Iterator[float]:
    """The rate goes linearly from one to the other over the workload, then stays: n(t) = a t + (b - a) t^2 / 2T."""
    begin, end = workload.arrivals.rate_s, workload.arrivals.end_rate_s
    assert begin is not None
    assert end is not None
    whole_s = workload.duration_s or 2 * workload.requests / (begin + end)
    bend, by_then = (end - begin) / (2 * whole_s), (begin + end) / 2 * whole_s
    for number in count():
        if number > by_then:
            yield whole_s + (number - by_then) / end
        elif bend == 0:
            yield number / begin
        else:
            yield (math.sqrt(begin**2 + 4 * bend * number) - begin) / (2 * bend)


def _generator(workload: Workload, purpose: str) -> random.Random:
    return random.Random(f"{workload.seed}/{workload.repeat}/{purpose}")
