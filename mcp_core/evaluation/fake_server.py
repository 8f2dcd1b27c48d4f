"""A fake OpenAI-compatible server that keeps to a known latency law: what a load generator is tested on.

It runs in a thread of its own, or as a process of its own: ``python -m mcp_core.evaluation.fake_server``. The
text of every chunk is the moment at which it was written, ``time.perf_counter()`` in seconds, which processes of
one machine share on Linux: receive time minus that is the client's own delay. It knows no model and no Recipe.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

__all__ = ["FakeServer", "FakeStats", "LatencyLaw"]


@dataclass(frozen=True, slots=True)
class LatencyLaw:
    """How the fake behaves. Its clock starts when a request arrives, or gets one of ``slots`` (None: there is one
    for everybody), for which it waits in line. The gap between two tokens is ``tpot_ms`` and ``crowd_ms`` for every
    other request that is running then. Of a chat's reply the first ``reasoning`` tokens are marked as such.

    Every ``error_every``-th request is answered with HTTP 500, every ``break_every``-th stream ends in an error
    event after its first token (0: never). More than ``queue_limit`` requests at once are answered with 503.
    From request ``die_at`` on the listening socket is closed and running streams are cut, as a killed server does.
    """

    ttft_ms: float = 20.0
    tpot_ms: float = 5.0
    crowd_ms: float = 0.0
    slots: int | None = None
    reasoning: int = 0
    error_every: int = 0
    break_every: int = 0
    queue_limit: int | None = None
    die_at: int | None = None


@dataclass(slots=True)
class FakeStats:
    """What the fake did, counted on its side."""

    requests: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    running: int = 0
    most_running: int = 0
    held_for: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)


class FakeServer:
    """The fake as a context manager: ``with FakeServer(LatencyLaw()) as server: ... server.url``.

    ``state`` is the document of ``GET /control/state``; None makes it a foreign server, without control routes and
    without token ids in its chunks.
    """

    def __init__(self, law: LatencyLaw | None = None, *, state: dict[str, Any] | None = None) -> None:
        self.law = law or LatencyLaw()
        self.state = state
        self.stats = FakeStats()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._slots = asyncio.Semaphore(self.law.slots) if self.law.slots else None
        self._served = 0
        self._thread = threading.Thread(target=self._serve, name="fake-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(timeout=10)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _start(self) -> None:
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await self._site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # of streams that were cut
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/v1/completions", self._completions)
        application.router.add_post("/v1/chat/completions", self._completions)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/health", self._health)
        if self.state is not None:
            application.router.add_get("/control/state", self._state)
            application.router.add_get("/control/stats", self._stats)
            application.router.add_post("/control/reset-peaks", self._reset_peaks)
            application.router.add_post("/control/hold", self._hold)
            application.router.add_post("/control/release", self._release)
        return application

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _state(self, _request: web.Request) -> web.Response:
        return web.json_response(self.state)

    async def _stats(self, _request: web.Request) -> web.Response:
        stats, decoded = self.stats, self.stats.output_tokens - self.stats.completed
        return web.json_response(
            {
                "running": stats.running,
                "prompt_tokens_total": stats.prompt_tokens,
                "output_tokens_total": stats.output_tokens,
                "prefill_s_total": stats.completed * self.law.ttft_ms / 1e3,
                "decode_s_total": decoded * self.law.tpot_ms / 1e3,
                "decode_steps_total": decoded,
                "finished_total": stats.completed,
                "memory": (self.state or {}).get("memory"),
            }
        )

    async def _reset_peaks(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _hold(self, request: web.Request) -> web.Response:
        if self.stats.held_for is not None:
            return _error(409, f"The worker is held already: {self.stats.held_for}.")
        self.stats.held_for = (await request.json())["purpose"]
        return web.json_response({"held_for": self.stats.held_for})

    async def _release(self, _request: web.Request) -> web.Response:
        self.stats.held_for = None
        return web.json_response({"held_for": None})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        stats = self.stats
        body = await request.json()
        stats.requests += 1
        number = stats.requests
        stats.bodies.append(body)
        if self.law.die_at is not None and number >= self.law.die_at:
            await self._die()
        if self.law.queue_limit is not None and stats.running >= self.law.queue_limit:
            stats.refused += 1
            return _error(503, "The queue is full.")
        if _every(self.law.error_every, number):
            stats.failed += 1
            return _error(500, "A planted failure.")
        return await self._stream(request, body, breaks=_every(self.law.break_every, number))

    async def _stream(self, request: web.Request, body: dict[str, Any], *, breaks: bool) -> web.StreamResponse:
        stats = self.stats
        stats.running += 1
        stats.most_running = max(stats.most_running, stats.running)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            async with self._slots or contextlib.nullcontext():
                self._served += 1
                try:
                    async for event in self._events(body, breaks=breaks):
                        await response.write(f"data: {event}\n\n".encode())
                finally:
                    self._served -= 1
        except (ConnectionError, asyncio.CancelledError):
            stats.cancelled += 1
            raise
        finally:
            stats.running -= 1
        return response

    async def _events(self, body: dict[str, Any], *, breaks: bool) -> AsyncIterator[str]:
        tokens, law, stats = int(body.get("max_tokens") or body["max_completion_tokens"]), self.law, self.stats
        due_s = time.perf_counter() + law.ttft_ms / 1e3
        for index in range(tokens):
            await asyncio.sleep(due_s - time.perf_counter())
            yield self._chunk(index, chat="messages" in body, last=index == tokens - 1)
            due_s += (law.tpot_ms + law.crowd_ms * (self._served - 1)) / 1e3
            if breaks:
                stats.failed += 1
                yield json.dumps({"error": {"message": "A planted failure.", "type": "server_error"}})
                return
        stats.completed += 1
        stats.prompt_tokens += _prompt_tokens(body)
        stats.output_tokens += tokens
        yield self._usage(body, tokens)
        yield "[DONE]"

    def _chunk(self, index: int, *, chat: bool, last: bool) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        said = f"{time.perf_counter():.9f} "
        if chat:
            choice["delta"] = {"reasoning_content" if index < self.law.reasoning else "content": said}
        else:
            choice["text"] = said
        if self.state is not None:
            choice["token_ids"] = [index]
        if last:
            choice["finish_reason"] = "length"
        return json.dumps({"object": "text_completion", "model": "fake", "choices": [choice]})

    def _usage(self, body: dict[str, Any], tokens: int) -> str:
        prompt = _prompt_tokens(body)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": tokens}
        usage["total_tokens"] = prompt + tokens
        if self.state is not None:
            decode_ms = (tokens - 1) * self.law.tpot_ms
            usage["timing"] = {"queue_ms": 0.0, "prefill_ms": self.law.ttft_ms, "decode_ms": decode_ms}
        return json.dumps({"object": "text_completion", "model": "fake", "choices": [], "usage": usage})

    async def _die(self) -> None:
        """Close the socket and cut every stream, this request's too."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if isinstance(server, web.Server) else ():
            if connection.transport is not None:
                connection.transport.abort()


def _prompt_tokens(body: dict[str, Any]) -> int:
    if "messages" in body:
        return sum(_words(message["content"]) for message in body["messages"])
    prompt = body["prompt"]
    return len(prompt.split()) if isinstance(prompt, str) else len(prompt)


def _words(content: str | list[dict[str, Any]]) -> int:
    """OpenAI's content is a text or a list of parts."""
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return sum(len(part.split()) for part in parts)


def _every(period: int, number: int) -> bool:
    return period > 0 and number % period == 0


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "server_error"}}, status=status)


def _main() -> None:
    """Serve until stdin ends; the first line of stdout is the address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--tpot-ms", type=float, default=5.0)
    parser.add_argument("--slots", type=int, default=None)
    options = parser.parse_args()
    with FakeServer(LatencyLaw(options.ttft_ms, options.tpot_ms, slots=options.slots), state={}) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _main()
