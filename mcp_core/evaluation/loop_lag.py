"""How late this process's own event loop runs, which is part of every time that it takes, and what holds it up.

This file does not know what the loop does meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np

__all__ = ["LoopLag", "loop_lag", "undisturbed"]

LAG_TICK_S = 0.005
# Of Python's 5 ms, which a thread that samples the machine may keep the loop waiting, so much is left to it.
_SWITCH_S = 0.0005


@dataclass(slots=True)
class LoopLag:
    """Lateness of this loop's own ticks, ms. A tick runs after all that has come was stamped: bytes that came when
    it was due waited no longer. The selector rounds waits up to 1 ms, which is part of it."""

    late_ms: list[float] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None

    @property
    def p99_ms(self) -> float | None:
        """None when it was never looked at."""
        return float(np.percentile(self.late_ms, 99)) if self.late_ms else None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the clock again and again until ``end``; a plain callback costs half of what a task does."""
        self._timer = loop.call_later(LAG_TICK_S, self._tick, loop, time.perf_counter() + LAG_TICK_S)

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self.late_ms.append((time.perf_counter() - due_s) * 1e3)
        self.begin(loop)


@contextlib.asynccontextmanager
async def loop_lag() -> AsyncIterator[LoopLag]:
    """Watch the running loop while the block lasts."""
    lag = LoopLag()
    lag.begin(asyncio.get_running_loop())
    try:
        yield lag
    finally:
        lag.end()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """While the block lasts, the collector leaves what there is alone (to look at all of it stops the loop
    for 75 ms), and other threads of this process give way sooner."""
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(switch_s)
