"""Latencies of the last minute's requests by the engine's own clock: exact percentiles, not buckets.

This file does not know what a request is made of; it is told two numbers when one ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LatencyWindow", "RecentLatency", "quantile"]

WINDOW_S = 60.0
# At more than so many requests a minute the oldest are left out of its percentiles.
MOST_REQUESTS = 4096


@dataclass(frozen=True, slots=True)
class RecentLatency:
    """ms, of ``requests`` that ended in the last minute; None without any (TPOT needs two tokens)."""

    requests: int = 0
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    tpot_p50_ms: float | None = None
    tpot_p95_ms: float | None = None

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> RecentLatency:
        """Of ``/control/stats``; a field that is missing is not known."""
        return cls(**{name: document[name] for name in cls.__slots__ if name in document})


class LatencyWindow:
    """Requests that ended in the last ``seconds``. For one thread only: a worker's event loop."""

    def __init__(self, seconds: float = WINDOW_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._ended: deque[tuple[float, float, float | None]] = deque(maxlen=MOST_REQUESTS)

    def add(self, ttft_ms: float, tpot_ms: float | None) -> None:
        """A request that got at least one token has ended; TPOT is None when it got only one."""
        self._ended.append((self._clock(), ttft_ms, tpot_ms))

    def read(self) -> RecentLatency:
        """Percentiles as of now."""
        since_s = self._clock() - self._seconds
        while self._ended and self._ended[0][0] < since_s:
            self._ended.popleft()
        ttfts = sorted(ttft for _, ttft, _ in self._ended)
        tpots = sorted(tpot for _, _, tpot in self._ended if tpot is not None)
        return RecentLatency(
            len(ttfts), quantile(ttfts, 0.5), quantile(ttfts, 0.95), quantile(tpots, 0.5), quantile(tpots, 0.95)
        )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Of values in order: linear between the two nearest ranks, as numpy's default. None of nothing."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
