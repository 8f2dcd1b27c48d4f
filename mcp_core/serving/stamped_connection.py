"""StampedConnector: connections that note when bytes came before anything else is done with them.

When many streams get their next bytes at one moment, reading one makes all those behind it late. So bytes are
stamped and put aside, and read some at a time, between which the loop looks for more. This file does not know what
the bytes say.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler

__all__ = ["Piece", "Reader", "StampedConnector", "handed_to", "unparted"]

# What one read takes at most; more comes with the next.
_BUFFER_BYTES = 1 << 16
# Replies read in one turn of the loop: about 0.1 ms, by which what arrives meanwhile is stamped late.
_IN_A_TURN = 4
# What was put aside is read after so long, however little it is.
_PATIENCE_S = 0.1
# The size of a part of a body in chunked transfer coding.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")

# Bytes, and when they came: time.perf_counter().
Piece = tuple[float, bytes]


class Reader(Protocol):
    """Who reads the body of one response. Neither method may raise."""

    # Pieces that are worth a call, unless one holds ``last`` or the body ends.
    most: int
    last: bytes

    def read(self, pieces: Sequence[Piece]) -> None:
        """What came since the last call."""

    def end(self, received_s: float) -> None:
        """No more will come; it was told then."""


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
    unread = protocol.follow(response, reader)
    try:
        yield
    finally:
        protocol.leave(unread)


def _hand_over(content: aiohttp.StreamReader, reader: Reader) -> None:
    now_s = time.perf_counter()
    if content.exception() is None and (data := content.read_nowait()):
        reader.read([(now_s, data)])
    reader.end(now_s)


def _in_plain_parts(response: aiohttp.ClientResponse) -> bool:
    coded = response.headers.get(hdrs.CONTENT_ENCODING, "identity")
    return response.headers.get(hdrs.TRANSFER_ENCODING, "").lower() == "chunked" and coded == "identity"


def unparted(data: bytes) -> bytes | None:
    """What whole parts of a body in chunked transfer coding (RFC 9112, 7.1) hold. None for anything but such parts,
    also for the last one, which is empty."""
    bodies, at = [], 0
    while at < len(data):
        size = _SIZE.match(data, at)
        if size is None:
            return None
        begin = size.end()
        at = begin + int(size[1], 16) + 2
        if at == begin + 2 or data[at - 2 : at] != b"\r\n":
            return None
        bodies.append(data[begin : at - 2])
    return b"".join(bodies)


class _Unread:
    """What has come for one reader."""

    __slots__ = ("due", "ended_s", "pieces", "queued", "reader")

    def __init__(self, reader: Reader, due: int) -> None:
        self.reader = reader
        self.due = due  # so many pieces are worth a call
        self.pieces: list[Piece] = []
        self.queued = False
        self.ended_s: float | None = None

    def hand_over(self) -> None:
        """Have it read."""
        pieces, self.pieces = self.pieces, []
        ended_s, self.ended_s = self.ended_s, None
        self.queued, self.due = False, self.reader.most
        if pieces:
            self.reader.read(pieces)
        if ended_s is not None:
            self.reader.end(ended_s)


class _Aside:
    """What has come on all connections and is not yet read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.space = memoryview(bytearray(_BUFFER_BYTES))
        self.loop = loop
        self._all: set[_Unread] = set()
        self._queue: deque[_Unread] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._number = 0

    def open(self, reader: Reader) -> _Unread:
        """A place for what comes for that reader. Streams that begin together are read at different steps."""
        self._number += 1
        unread = _Unread(reader, 1 + self._number % reader.most)
        self._all.add(unread)
        if self._sweep is None:
            self._sweep = self.loop.call_later(_PATIENCE_S, self._look_at_all)
        return unread

    def close(self, unread: _Unread) -> None:
        """Nothing comes any more, or nobody wants it."""
        self._all.discard(unread)

    def queue(self, unread: _Unread) -> None:
        """Read it soon."""
        if unread.queued:
            return
        unread.queued = True
        if not self._queue:
            self.loop.call_soon(self._turn)
        self._queue.append(unread)

    def _turn(self) -> None:
        for _ in range(min(len(self._queue), _IN_A_TURN)):
            self._queue.popleft().hand_over()
        if self._queue:
            self.loop.call_soon(self._turn)

    def _look_at_all(self) -> None:
        before_s = time.perf_counter() - _PATIENCE_S
        for unread in self._all:
            if unread.pieces and unread.pieces[0][0] < before_s:
                self.queue(unread)
        self._sweep = self.loop.call_later(_PATIENCE_S, self._look_at_all) if self._all else None


class _StampedConnection(ResponseHandler, asyncio.BufferedProtocol):
    """One connection. Until somebody reads its present response, it remembers when how much of it had come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, aside: _Aside) -> None:
        super().__init__(loop)
        self._aside = aside
        self._unread: _Unread | None = None
        self._content: aiohttp.StreamReader | None = None
        self._arrivals: list[tuple[float, int]] = []
        self._taken = 0
        # Whether aiohttp's parser is in a body between two of its parts.
        self._between = False

    def follow(self, response: aiohttp.ClientResponse, reader: Reader) -> _Unread:
        """The rest of this response goes to that reader, and what has come of it."""
        content = response.content
        arrivals = self._arrivals if content is self._content else []
        self._between = self._between and bool(arrivals) and _in_plain_parts(response)
        self._content, self._arrivals, self._taken = content, [], 0
        unread = self._unread = self._aside.open(reader)
        for received_s, total in arrivals:
            self._take(unread, received_s, total - self._taken)
        self._take_all(unread, time.perf_counter())
        return unread

    def leave(self, unread: _Unread) -> None:
        """Its reader gets what has come, the end too, and wants no more."""
        self._aside.close(unread)
        if self._unread is unread:
            self._unread = None
        unread.hand_over()

    def get_buffer(self, sizehint: int) -> memoryview:
        """One for all: what is put there is taken away at once."""
        return self._aside.space

    def buffer_updated(self, nbytes: int) -> None:
        """Called when bytes have come, before any task learns of it."""
        received_s, data = time.perf_counter(), self._aside.space[:nbytes].tobytes()
        unread = self._unread
        if unread is not None and self._between:
            body = unparted(data)
            if body is not None:  # aiohttp's parser would end where it is
                self._put(unread, received_s, body)
                return
            self._between = False
        self.data_received(data)
        if unread is not None:
            self._take_all(unread, received_s)
        elif self._payload is not None:
            self._remember(received_s, self._payload, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called at its end."""
        super().connection_lost(exc)
        unread, now_s = self._unread, time.perf_counter()
        if unread is not None:
            self._take_all(unread, now_s)
            self._end(unread, now_s)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp asks for it after each reading; where nothing was paused there is nothing to do."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _remember(self, received_s: float, content: aiohttp.StreamReader, data: bytes) -> None:
        if content is not self._content:
            self._content, self._arrivals, self._between = content, [], data.startswith(b"HTTP/1.1 ")
            data = data.partition(b"\r\n\r\n")[2]
        self._between = self._between and unparted(data) is not None
        self._arrivals.append((received_s, content.total_bytes))

    def _take(self, unread: _Unread, received_s: float, most: int) -> None:
        """Put aside what has come of the body, at most so many bytes (-1: all)."""
        assert self._content is not None
        if most and self._content.exception() is None and (data := self._content.read_nowait(most)):
            self._taken += len(data)
            self._put(unread, received_s, data)

    def _take_all(self, unread: _Unread, received_s: float) -> None:
        content = self._content
        assert content is not None
        while content.total_bytes > self._taken and content.exception() is None:
            self._take(unread, received_s, -1)  # which may let a paused parser give more
        if content.is_eof() or content.exception() is not None:
            self._end(unread, received_s)

    def _put(self, unread: _Unread, received_s: float, data: bytes) -> None:
        unread.pieces.append((received_s, data))
        if len(unread.pieces) >= unread.due or unread.reader.last in data:
            self._aside.queue(unread)

    def _end(self, unread: _Unread, received_s: float) -> None:
        if unread.ended_s is None:
            unread.ended_s = received_s
            self._aside.queue(unread)
            self._aside.close(unread)
            self._unread = None
