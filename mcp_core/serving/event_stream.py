"""EventStream: the server-sent events of one reply, for who looks at each or wants them noted.

This file does not know how a request is sent or refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import aiohttp

from mcp_core.results import Failure
from mcp_core.serving.chunk import Chunk, read_chunk
from mcp_core.serving.stamped_connection import handed_to

__all__ = ["EventStream"]


class EventStream(AsyncIterator[Chunk]):
    """The events of one reply, once: ``async for`` wakes its task for each, ``into`` once, at the end.

    ``post`` sends the request; what it raises is raised before the first event. ``cut_off`` is the failure of a
    reply whose connection ended before ``[DONE]``.
    """

    def __init__(
        self, post: Callable[[], Awaitable[aiohttp.ClientResponse]], cut_off: Callable[[], Failure]
    ) -> None:
        self._post = post
        self._cut_off = cut_off
        self._chunks = self._each()

    async def into(self, take: Callable[[Chunk], object]) -> None:
        """Call ``take`` for every event, moments after it came, and return after the last. Raises what ``post`` and
        ``take`` raise."""
        async with await self._post() as response:
            events = _Events(take, self._cut_off)
            with handed_to(events, response):
                await events.ended

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def _each(self) -> AsyncGenerator[Chunk]:
        async with await self._post() as response:
            come: asyncio.Queue[Chunk | None] = asyncio.Queue()
            events = _Events(come.put_nowait, self._cut_off)
            events.ended.add_done_callback(lambda _: come.put_nowait(None))
            with handed_to(events, response):
                while (chunk := await come.get()) is not None:
                    yield chunk


class _Events:
    """Bytes of a reply put together to events. ``ended`` is done after the last, or with what ``take`` raised."""

    def __init__(self, take: Callable[[Chunk], object], cut_off: Callable[[], Failure]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take = take
        self._cut_off = cut_off
        self._rest = b""

    def read(self, received_s: float, data: bytes) -> None:
        """Bytes that came at that moment; an event came with its last one."""
        if self.ended.done():
            return
        try:
            self._read(received_s, data)
        except Exception as error:  # noqa: BLE001 - for whoever waits, not for the loop that calls us
            self.ended.set_exception(error)

    def end(self, received_s: float) -> None:
        """No more will come: too early, where no event was the last."""
        if not self.ended.done():
            self._take(Chunk(received_s, error=self._cut_off()))
            self.ended.set_result(None)

    def _read(self, received_s: float, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            chunk = None if payload == b"[DONE]" else read_chunk(received_s, payload)
            if chunk is not None:
                self._take(chunk)
            if chunk is None or chunk.error:
                self.ended.set_result(None)
                return
