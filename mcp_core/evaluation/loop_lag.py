"""How late this process's own event loop runs, which is part of every time that it takes.

This file does not know what the loop does meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

__all__ = ["LoopLag", "loop_lag"]

LAG_TICK_S = 0.005


@dataclass(slots=True)
class LoopLag:
    """Lateness of this loop's own ticks, ms. The selector rounds waits up to 1 ms, which is part of it."""

    late_ms: list[float] = field(default_factory=list)

    @property
    def p99_ms(self) -> float | None:
        """None when it was never looked at."""
        return float(np.percentile(self.late_ms, 99)) if self.late_ms else None

    async def tick_forever(self) -> None:
        """Look at the clock again and again until cancelled."""
        while True:
            due_s = time.perf_counter() + LAG_TICK_S
            await asyncio.sleep(LAG_TICK_S)
            self.late_ms.append((time.perf_counter() - due_s) * 1e3)


@contextlib.asynccontextmanager
async def loop_lag() -> AsyncIterator[LoopLag]:
    """Watch the running loop while the block lasts."""
    lag = LoopLag()
    ticking = asyncio.create_task(lag.tick_forever())
    try:
        yield lag
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
