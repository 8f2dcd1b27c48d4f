from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from mcp_core.loop_thread import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread("test-loop")
    yield thread
    if not thread.closed:
        thread.close()


def test_everything_runs_on_the_one_thread(loop: LoopThread) -> None:
    async def where() -> str:
        return threading.current_thread().name

    assert loop.call(lambda: threading.current_thread().name) == loop.wait_for(where()) == "test-loop"


def test_what_is_raised_there_is_raised_here(loop: LoopThread) -> None:
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 // 0)
    assert loop.call(lambda: 5) == 5


def test_begin_does_not_wait_and_close_cancels_what_it_began(loop: LoopThread) -> None:
    began, ended = threading.Event(), threading.Event()

    async def for_ever() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop.begin(for_ever())
    assert began.wait(10)
    assert not ended.is_set()
    loop.close()
    assert ended.is_set()
    assert loop.closed
    assert "test-loop" not in {thread.name for thread in threading.enumerate()}
