"""Ctrl-C and SIGTERM end a command's coroutine by cancelling it, so that it can tidy up what it started.

This file does not know what is tidied up.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_until_stopped"]

T = TypeVar("T")


def run_until_stopped(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` that treats SIGTERM as Ctrl-C: the coroutine sees CancelledError, and may return a value all
    the same. Raises KeyboardInterrupt when it does not."""

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        return await main

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error
