"""1,000 clients of which most vanish, each in its own way: every request that was accepted ends exactly once."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from mcp_core.generation import TokenEvent
from mcp_core.serving.fake_engine import FakeEngine, FakeModel

CLIENTS, AT_ONCE, HELD = 1000, 200, 150
FAILS_AT = 120  # tokens: a client that waits for more sees its request fail; one that vanished was noticed before

Stay = Literal["connect", "half", "sent", "first chunk", "third read", "end"]
STAYS: tuple[Stay, ...] = ("connect", "half", "sent", "first chunk", "third read", "end")


def test_1000_clients_that_vanish_leave_an_idle_engine_and_each_request_ended_once(
    serve: Callable[..., Any], model_id: str
) -> None:
    ends: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    def make_engine(sink: Callable[[list[TokenEvent]], None]) -> FakeEngine:
        def watched(events: list[TokenEvent]) -> None:
            ends.update(event.request_id for event in events if event.finish)
            kinds.update(event.finish for event in events if event.finish)
            sink(events)

        return FakeEngine(watched, script=(65, 66, 67), token_s=0.002, max_requests=HELD, fail_at=FAILS_AT)

    server = serve(model=replace(FakeModel(), max_context=100_000), make_engine=make_engine)
    tasks_before = len(asyncio.all_tasks(server.loop))
    statuses = asyncio.run(come_and_vanish(server.port, model_id))

    server.wait_for(lambda: not server.engine._held, 20)
    accepted = [request.id for request in server.engine.requests]
    assert len(accepted) == len(set(accepted)) > CLIENTS / 2
    assert ends == dict.fromkeys(accepted, 1)
    assert min(kinds[finish] for finish in ("length", "cancelled", "error")) >= 20
    stats = server.engine.stats()
    assert (stats.running, stats.queued) == (0, 0)
    assert stats.finished_total + stats.cancelled_total + stats.failed_total == len(accepted)

    # What HTTP kept of them is gone too, and the next client is served.
    server.wait_for(lambda: len(asyncio.all_tasks(server.loop)) <= tasks_before, 20)
    assert server.service._inboxes._by_request == {}
    assert counted_ends(server) == len(accepted)
    assert set(statuses) <= {200, 500, 503}
    (status,) = asyncio.run(all_of([one(server.port, model_id, "end", 3, 1, False)]))
    assert status == 200


def counted_ends(server: Any) -> float:
    """Of all reasons, as /metrics has them."""
    page = server.service.metrics.render().decode()
    return sum(float(value) for value in re.findall(r"vllm:request_success_total\{.*\} (\S+)", page))


async def come_and_vanish(port: int, model_id: str) -> list[int]:
    draw, gate = random.Random(4), asyncio.Semaphore(AT_ONCE)

    async def client() -> int | None:
        stay, choices, resets = draw.choice(STAYS), draw.choice((1, 1, 2)), draw.random() < 0.5
        tokens = draw.choice((2, 5, 90_000))
        async with gate:
            return await one(port, model_id, stay, tokens, choices, resets)

    return await all_of([client() for _ in range(CLIENTS)])


async def all_of(clients: list[Any]) -> list[int]:
    """The statuses of those that saw one."""
    async with asyncio.timeout(60):
        return [status for status in await asyncio.gather(*clients) if status is not None]


async def one(port: int, model_id: str, stay: Stay, tokens: int, choices: int, resets: bool) -> int | None:
    """Stay so long, then vanish, with a reset or a plain close; the HTTP status, if one was seen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if resets:  # close() then sends RST at once
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    try:
        return await _exchange(reader, writer, stay, _request(model_id, tokens, choices))
    finally:
        writer.transport.abort() if resets else writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stay: Stay, request: bytes
) -> int | None:
    if stay == "connect":
        return None
    writer.write(request[: len(request) // 2] if stay == "half" else request)
    await writer.drain()
    if stay in ("half", "sent"):
        return None
    status = int((await reader.readline()).split()[1])
    if stay == "third read":
        for _ in range(3):
            await reader.read(200)
    if stay == "end":
        await reader.read()
    return status


def _request(model_id: str, tokens: int, choices: int) -> bytes:
    asked = {"model": model_id, "prompt": "x", "max_tokens": tokens, "n": choices, "stream": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
