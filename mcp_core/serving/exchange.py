"""Exchange: one HTTP request in the engine, from submitting its choices to the end of the last one.

This file does not know what a request asked for (``service.py``) or how pieces are written (``answer.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from mcp_core.errors import McpError
from mcp_core.generation import TokenEvent
from mcp_core.serving.inbox import Inboxes
from mcp_core.serving.reply import Piece, Reply
from mcp_core.serving.served_model import ServingEngine

__all__ = ["ClientGone", "Exchange"]


class ClientGone(Exception):
    """The client has disconnected."""


class Exchange:
    """The choices of one HTTP request, submitted when made. ``close`` it, however it ends.

    Making one raises QueueFull or RequestRejected; then no choice of it is left in the engine.
    """

    def __init__(self, exchange_id: str, replies: Sequence[Reply], engine: ServingEngine, inboxes: Inboxes) -> None:
        self.id = exchange_id
        self.replies = tuple(replies)
        self._engine = engine
        self._inboxes = inboxes
        self._by_request = {reply.request.id: reply for reply in self.replies}
        self._inbox = inboxes.open(self._by_request)
        try:
            for reply in self.replies:
                engine.submit(reply.request)
        except McpError:
            self.close()
            raise

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What comes in at once, as lists, until every choice has ended.

        Raises the McpError that ended a choice, after the pieces before it; ClientGone after ``abandon``.
        """
        while not all(reply.ended for reply in self.replies):
            events = await self._inbox.take()
            if not events:
                raise ClientGone
            pieces, failure = self._read(events)
            if pieces:
                yield pieces
            if failure is not None:
                raise failure

    def abandon(self) -> None:
        """The client has gone: stop decoding at once, and wake ``pieces`` to its end."""
        self.close()
        self._inbox.abandon()

    def close(self) -> None:
        """Stop what has not ended and drop what still comes in."""
        self._inboxes.close(self._inbox)
        for reply in self.replies:
            if not reply.ended:
                self._engine.cancel(reply.request.id)
                reply.abort()

    def _read(self, events: list[TokenEvent]) -> tuple[list[Piece], McpError | None]:
        pieces: list[Piece] = []
        for event in events:
            reply = self._by_request[event.request_id]
            if reply.ended:
                continue
            try:
                piece = reply.take(event)
            except McpError as error:
                return pieces, error
            if piece is not None:
                pieces.append(piece)
            elif not reply.ended:
                self._engine.cancel(event.request_id)  # a stop string was met
        return pieces, None
