"""EventStream: the server-sent events of one reply, for who looks at each or wants them noted.

This file does not know how a request is sent or refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

import aiohttp

from mcp_core.results import Failure
from mcp_core.serving.chunk import Chunk
from mcp_core.serving.event_form import ChunkReader
from mcp_core.serving.stamped_connection import Piece, handed_to

__all__ = ["EventStream"]

# Events that are only noted are read so many at a time, which takes half as long, 0.1 s late at most.
_AT_ONCE = 8


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
        self._chunks = _each(post, cut_off)

    async def into(self, take: Callable[[Chunk], object]) -> None:
        """Call ``take`` for every event, a while after it came, and return right after the last. Where it is
        cancelled, ``take`` has had all that came. Raises what ``post`` and ``take`` raise."""
        async with await self._post() as response:
            events = _Events(take, self._cut_off, _AT_ONCE)
            with handed_to(events, response):
                await events.ended

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)


async def _each(
    post: Callable[[], Awaitable[aiohttp.ClientResponse]], cut_off: Callable[[], Failure]
) -> AsyncGenerator[Chunk]:
    """Does not know its stream: one that is left in the middle of a loop ends at once, the request with it."""
    async with await post() as response:
        come: asyncio.Queue[Chunk | None] = asyncio.Queue()
        events = _Events(come.put_nowait, cut_off, 1)
        events.ended.add_done_callback(lambda _: come.put_nowait(None))
        with handed_to(events, response):
            while (chunk := await come.get()) is not None:
                yield chunk


class _Events:
    """Bytes of a reply put together to events. ``ended`` is done after the last, or with what ``take`` raised."""

    last = b"[DONE]"

    def __init__(self, take: Callable[[Chunk], object], cut_off: Callable[[], Failure], most: int) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.most = most
        self._take = take
        self._cut_off = cut_off
        self._over = False
        self._rest = b""
        self._reader = ChunkReader()

    def read(self, pieces: Sequence[Piece]) -> None:
        """What came; an event came with its last byte."""
        self._guarded(lambda: any(self._read(received_s, data) for received_s, data in pieces))

    def end(self, received_s: float) -> None:
        """No more will come: too early, where no event was the last."""
        self._guarded(lambda: self._cut_short(received_s))

    def _guarded(self, work: Callable[[], bool]) -> None:
        """Unless all is over: ``work`` says whether it is now."""
        if self._over:
            return
        try:
            self._over = work()
        except Exception as error:  # noqa: BLE001 - for whoever waits, not for the loop that calls us
            self._over = True
            if not self.ended.done():  # nobody waits any more
                self.ended.set_exception(error)
        if self._over and not self.ended.done():
            self.ended.set_result(None)

    def _cut_short(self, received_s: float) -> bool:
        self._take(Chunk(received_s, error=self._cut_off()))
        return True

    def _read(self, received_s: float, data: bytes) -> bool:
        """Whether the last event was among them."""
        if not self._rest and data.endswith(b"\n\n") and data.find(b"\n") == len(data) - 2:
            lines = [data]  # one event: nothing to put together
        else:
            *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == self.last:
                return True
            chunk = self._reader.read(received_s, payload)
            self._take(chunk)
            if chunk.error:
                return True
        return False
