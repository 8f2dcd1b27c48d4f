"""Inboxes: token events from the engine's thread to the HTTP requests that wait for them on the event loop.

This file does not know what an event means or how it becomes text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from mcp_core.generation import TokenEvent

__all__ = ["Inbox", "Inboxes"]


class Inbox:
    """The events of one HTTP request, which may be several engine requests. On the event loop only.

    A list and one future, not an asyncio.Queue: every token of every stream passes here.
    """

    def __init__(self, request_ids: Iterable[str]) -> None:
        self.request_ids = tuple(request_ids)
        self._events: list[TokenEvent] = []
        self._abandoned = False
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> list[TokenEvent]:
        """Everything that has come in, at least one event; empty once the inbox was abandoned. One taker only."""
        if not self._events and not self._abandoned:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self._events = self._events, []
        return [] if self._abandoned else events

    def put(self, event: TokenEvent) -> None:
        """Add one event."""
        self._events.append(event)
        self._wake()

    def abandon(self) -> None:
        """Wake the taker: nobody reads on."""
        self._abandoned = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():  # a taker that was cancelled has done with it
            waiter.set_result(None)


class Inboxes:
    """Every open inbox, by engine request. ``deliver`` is the engine's sink."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._by_request: dict[str, Inbox] = {}

    def open(self, request_ids: Iterable[str]) -> Inbox:
        """A new inbox for these engine requests; to be opened before they are submitted."""
        inbox = Inbox(request_ids)
        self._by_request |= dict.fromkeys(inbox.request_ids, inbox)
        return inbox

    def close(self, inbox: Inbox) -> None:
        """Forget it; events that still come are dropped."""
        for request_id in inbox.request_ids:
            self._by_request.pop(request_id, None)

    def deliver(self, events: list[TokenEvent]) -> None:
        """Hand one step's events over. From any thread; wakes the event loop once."""
        # A loop that has closed has no readers left: the worker is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._sort, events)

    def _sort(self, events: list[TokenEvent]) -> None:
        for event in events:
            inbox = self._by_request.get(event.request_id)
            if inbox is not None:
                inbox.put(event)
