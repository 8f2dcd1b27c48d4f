"""StampedConnector: connections that note when bytes came before anything else is done with them.

When many streams get their next bytes at one moment, reading one makes all those behind it late. So bytes are
stamped and put aside, and read while the loop has nothing to receive. This file does not know what the bytes say.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler

__all__ = ["Reader", "StampedConnector", "handed_to"]

# What one read takes at most; more comes with the next.
_BUFFER_BYTES = 1 << 16
# Readings in one turn of the loop: about 0.1 ms, by which what arrives meanwhile is stamped late.
_IN_A_TURN = 8
# Bytes that have waited so long are read although others still arrive.
_PATIENCE_S = 0.002


class Reader(Protocol):
    """Who reads the body of one response. Neither method may raise."""

    def read(self, received_s: float, data: bytes) -> None:
        """Bytes that came at that moment, time.perf_counter()."""

    def end(self, received_s: float) -> None:
        """No more will come."""


class StampedConnector(aiohttp.TCPConnector):
    """aiohttp's connector with such connections; for the running loop."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        aside = _Aside(asyncio.get_running_loop())
        # The one place where a connection is made has no public name; a test notices when it moves.
        connection: Callable[..., ResponseHandler] = _StampedConnection
        self._factory = functools.partial(connection, aside=aside, loop=aside.loop)


@contextlib.contextmanager
def handed_to(reader: Reader, response: aiohttp.ClientResponse) -> Iterator[None]:
    """While the block lasts, what comes of a response of such a connector goes to the reader, moments later."""
    connection = response.connection
    if connection is None:  # the whole reply came with its head
        _hand_over(response.content, reader)
        yield
        return
    protocol = connection.protocol
    assert isinstance(protocol, _StampedConnection), "not a session of open_session()"
    protocol.follow(response.content, reader)
    try:
        yield
    finally:
        protocol.leave(reader)


def _hand_over(content: aiohttp.StreamReader, reader: Reader) -> None:
    now_s = time.perf_counter()
    if content.exception() is None and (data := content.read_nowait()):
        reader.read(now_s, data)
    reader.end(now_s)


class _Aside:
    """Bytes not yet read, of all connections, in the order in which they came."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.space = memoryview(bytearray(_BUFFER_BYTES))
        self.loop = loop
        self._waiting: deque[tuple[Reader, float, bytes | None]] = deque()
        self._came = False

    def put(self, reader: Reader, received_s: float, data: bytes | None) -> None:
        """None: no more will come."""
        self._came = True
        if not self._waiting:
            self.loop.call_soon(self._turn)
        self._waiting.append((reader, received_s, data))

    def _turn(self) -> None:
        """Read some if nothing came since the last turn; between two the loop looks for more."""
        waiting = self._waiting
        if not self._came or time.perf_counter() - waiting[0][1] > _PATIENCE_S:
            for _ in range(min(len(waiting), _IN_A_TURN)):
                reader, received_s, data = waiting.popleft()
                if data is None:
                    reader.end(received_s)
                else:
                    reader.read(received_s, data)
        self._came = False
        if waiting:
            self.loop.call_soon(self._turn)


class _StampedConnection(ResponseHandler, asyncio.BufferedProtocol):
    """One connection. Until somebody reads its present response, it remembers when how much of it had come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, aside: _Aside) -> None:
        super().__init__(loop)
        self._aside = aside
        self._reader: Reader | None = None
        self._content: aiohttp.StreamReader | None = None
        self._arrivals: list[tuple[float, int]] = []
        self._taken = 0

    def follow(self, content: aiohttp.StreamReader, reader: Reader) -> None:
        """The rest of this response goes to that reader, and what has come of it."""
        arrivals = self._arrivals if content is self._content else []
        self._content, self._arrivals, self._reader, self._taken = content, [], reader, 0
        for received_s, total in arrivals:
            self._take(received_s, total - self._taken)
        self._take(time.perf_counter())

    def leave(self, reader: Reader) -> None:
        """That reader wants no more."""
        if self._reader is reader:
            self._reader = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """One for all: what is put there is taken away at once."""
        return self._aside.space

    def buffer_updated(self, nbytes: int) -> None:
        """Called when bytes have come, before any task learns of it."""
        received_s = time.perf_counter()
        self.data_received(self._aside.space[:nbytes].tobytes())
        if self._reader is not None:
            self._take(received_s)
        elif self._payload is not None:
            self._remember(received_s, self._payload)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called at its end."""
        super().connection_lost(exc)
        now_s = time.perf_counter()
        if self._reader is not None:
            self._take(now_s)
        self._end(now_s)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp asks for it after each reading; where nothing was paused there is nothing to do."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _remember(self, received_s: float, content: aiohttp.StreamReader) -> None:
        if content is not self._content:
            self._content, self._arrivals = content, []
        self._arrivals.append((received_s, content.total_bytes))

    def _take(self, received_s: float, most: int = -1) -> None:
        """Put aside what has come of the body; a reading may let a paused parser give more."""
        content, reader = self._content, self._reader
        assert content is not None
        assert reader is not None
        while most and content.total_bytes > self._taken and content.exception() is None:
            data = content.read_nowait(most)
            self._taken += len(data)
            self._aside.put(reader, received_s, data)
            if most > 0:
                return
        if most < 0 and (content.is_eof() or content.exception() is not None):
            self._end(received_s)

    def _end(self, received_s: float) -> None:
        if self._reader is not None:
            self._aside.put(self._reader, received_s, None)
            self._reader = None
