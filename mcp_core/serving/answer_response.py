"""AnswerResponse: sends one exchange to its client, streamed or whole, and stops it when the client goes.

This file does not know what was asked or how an answer is spelled (``answer.py``).
"""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mcp_core.errors import McpError
from mcp_core.serving.answer import AnswerForm, encode, total_usage
from mcp_core.serving.exchange import ClientGone, Exchange
from mcp_core.serving.http_errors import error_document, error_response
from mcp_core.serving.reply import Piece, Usage

__all__ = ["AnswerResponse"]

_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ],
}


class AnswerResponse(Response):
    """One exchange as an HTTP response. ``per_prompt`` choices belong to each prompt (``n``)."""

    def __init__(
        self, exchange: Exchange, form: AnswerForm, *, stream: bool, include_usage: bool, per_prompt: int
    ) -> None:
        super().__init__()
        self._exchange = exchange
        self._form = form
        self._is_stream = stream
        self._include_usage = include_usage
        self._per_prompt = per_prompt
        self._usages: dict[int, Usage] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that disconnects stops the engine's work at once."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            if self._is_stream:
                await self._stream(scope, receive, send)
            else:
                await self._whole(scope, receive, send)
        except ClientGone:
            pass
        finally:
            watcher.cancel()
            self._exchange.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._exchange.abandon()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices: list[list[Piece]] = [[] for _ in self._exchange.replies]
        try:
            async for pieces in self._exchange.pieces():
                for piece in pieces:
                    self._note(piece)
                    choices[piece.choice].append(piece)
        except McpError as error:
            await error_response(error)(scope, receive, send)
            return
        document = self._form.whole(choices, self._total())
        await Response(encode(document), media_type="application/json")(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is sent before the first piece, so that what fails until then has an HTTP status."""
        started = False
        try:
            async for pieces in self._exchange.pieces():
                if not started:
                    await send(_STREAM_START)
                    started = True
                await _send(send, "".join(self._event(piece) for piece in pieces))
        except McpError as error:
            if not started:
                await error_response(error)(scope, receive, send)
                return
            # No [DONE]: a client must not take what it has for the whole.
            await _send(send, _as_event(encode(error_document(error))), more=False)
            return
        last = _as_event(self._form.usage_chunk(self._total())) if self._include_usage else ""
        await _send(send, last + "data: [DONE]\n\n", more=False)

    def _event(self, piece: Piece) -> str:
        self._note(piece)
        return _as_event(self._form.chunk(piece))

    def _note(self, piece: Piece) -> None:
        if piece.usage is not None:
            self._usages[piece.choice] = piece.usage

    def _total(self) -> Usage:
        return total_usage([self._usages[choice] for choice in sorted(self._usages)], self._per_prompt)


def _as_event(document: str) -> str:
    return f"data: {document}\n\n"


async def _send(send: Send, text: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": more})
