"""A loop that is held up says so, and what holds it up by nature is kept away."""

from __future__ import annotations

import asyncio
import gc
import sys
import time

from mcp_core.evaluation.loop_lag import loop_lag, undisturbed


def test_a_loop_that_is_held_up_is_late_by_that_much() -> None:
    async def main() -> list[float]:
        async with loop_lag() as lag:
            for _ in range(5):
                await asyncio.sleep(0.01)
                time.sleep(0.05)  # noqa: ASYNC251 - the point of it
        seen = len(lag.late_ms)
        await asyncio.sleep(0.03)
        assert len(lag.late_ms) == seen  # it looks no more
        return lag.late_ms

    late_ms = asyncio.run(main())
    assert sum(each > 40 for each in late_ms) >= 4
    assert min(late_ms) >= 0


def test_the_collector_leaves_alone_what_there_was_and_threads_give_way() -> None:
    switch_s, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    with undisturbed():
        assert gc.get_freeze_count() > frozen
        assert sys.getswitchinterval() < switch_s
    assert sys.getswitchinterval() == switch_s
    assert gc.get_freeze_count() == 0
