"""Bytes are stamped before they are read, and are the same bytes in whatever way HTTP sends them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from mcp_core.serving import stamped_connection
from mcp_core.serving.chunk import Chunk
from mcp_core.serving.client import ServerClient
from mcp_core.serving.event_stream import EventStream
from mcp_core.serving.stamped_connection import unparted

DONE = b"data: [DONE]\n\n"
LAST_PART = b"0\r\n\r\n"


def event(number: int) -> bytes:
    choice = {"index": 0, "text": f" w{number}", "token_ids": [number], "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(*fields: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", "Content-Type: text/event-stream", *fields, "", "")).encode()


EVENTS = [event(number) for number in range(30)]
BODY = b"".join(EVENTS) + DONE
CHUNKED = head("Transfer-Encoding: chunked")


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[ServerClient, list[int]]]:
    """A client of a server that answers every request so; and of each connection how many requests it had."""
    requests: list[int] = []
    tasks: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(requests)
        requests.append(0)
        tasks.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                length = int((await reader.readuntil(b"\r\n\r\n")).lower().split(b"content-length: ")[1].split()[0])
                await reader.readexactly(length)
                requests[number] += 1
                await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with ServerClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        yield client, requests
    server.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*(task for task in tasks if task is not None))


def sending(pieces: Sequence[bytes], *, close: bool = False) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if close:
            writer.close()

    return answer


async def noted(client: ServerClient) -> list[Chunk]:
    stream, chunks = client.stream("/v1/completions", {"prompt": "x"}), list[Chunk]()
    assert isinstance(stream, EventStream)
    async with asyncio.timeout(5):
        await stream.into(chunks.append)
    return chunks


async def seen(client: ServerClient) -> list[Chunk]:
    async with asyncio.timeout(5):
        return [chunk async for chunk in client.stream("/v1/completions", {"prompt": "x"})]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


PARTS = [part(each) for each in (*EVENTS, DONE)]
WAYS = {
    "a part an event": [CHUNKED, *PARTS, LAST_PART],
    "with the head": [CHUNKED + PARTS[0], *PARTS[1:-1], PARTS[-1] + LAST_PART],
    "all at once": [CHUNKED + b"".join(PARTS) + LAST_PART],
    "parts cut anywhere": cut(CHUNKED + b"".join(PARTS) + LAST_PART, 37),
    "a byte each": cut(CHUNKED + b"".join(PARTS[-4:]) + LAST_PART, 1),
    "many parts an event": [CHUNKED, *(part(each) for each in cut(BODY, 11)), LAST_PART],
    "several parts at once": [
        CHUNKED,
        *(b"".join(PARTS[at : at + 4]) for at in range(0, len(PARTS), 4)),
        LAST_PART,
    ],
    "extensions": [CHUNKED, *(each.replace(b"\r\n", b";a=b\r\n", 1) for each in PARTS), LAST_PART],
    "of known length": [head(f"Content-Length: {len(BODY)}"), *EVENTS, DONE],
    "packed": [
        head("Transfer-Encoding: chunked", "Content-Encoding: gzip"),
        *(part(each) for each in cut(gzip.compress(BODY), 50)),
        LAST_PART,
    ],
}


@pytest.mark.parametrize("read", [noted, seen])
@pytest.mark.parametrize("way", WAYS)
def test_events_are_the_same_in_whatever_way_they_are_sent_and_the_connection_is_kept(way: str, read: Any) -> None:
    async def run() -> None:
        async with serving(sending(WAYS[way])) as (client, requests):
            for _ in range(3):
                chunks = await read(client)
                wanted = range(27, 30) if way == "a byte each" else range(30)
                assert [(each.text, each.token_ids) for each in chunks] == [(f" w{n}", (n,)) for n in wanted]
                assert [each.received_s for each in chunks] == sorted(each.received_s for each in chunks)
                await asyncio.sleep(0.01)
        # Where the body's end comes after [DONE], its connection may be closed by then.
        assert requests == [3] or way not in ("with the head", "all at once")

    asyncio.run(run())


@pytest.mark.parametrize("read", [noted, seen])
def test_a_body_that_ends_with_its_connection(read: Any) -> None:
    async def run(body: bytes) -> list[Chunk]:
        async with serving(sending([head(), body], close=True)) as (client, _):
            return list(await read(client))

    assert len(asyncio.run(run(BODY))) == 30
    lost = asyncio.run(run(b"".join(EVENTS)))
    assert len(lost) == 31
    assert lost[-1].error is not None


@pytest.mark.parametrize("read", [noted, seen])
@pytest.mark.parametrize(
    "ending", [DONE, b'data: {"error": {"message": "no"}}\n\n', b"data: {oops\n\n", b'data: {"a" 1}\n\n']
)
def test_the_last_event_ends_a_stream_whose_server_says_nothing_more(ending: bytes, read: Any) -> None:
    """It keeps the connection and the body open."""

    async def run() -> list[Chunk]:
        async with serving(sending([CHUNKED, *PARTS[:-1], part(ending)])) as (client, _):
            return list(await read(client))

    chunks = asyncio.run(run())
    assert [each.text for each in chunks[:30]] == [f" w{number}" for number in range(30)]
    assert [each.error is not None for each in chunks[30:]] == ([] if ending == DONE else [True])


def test_what_came_before_a_stream_was_given_up_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamped_connection, "_PATIENCE_S", 60.0)  # only giving up makes it read
    chunks: list[Chunk] = []

    async def run() -> None:
        written = asyncio.Event()

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(CHUNKED + b"".join(PARTS[:2]))
            await asyncio.sleep(0.1)
            for each in PARTS[2:7]:
                writer.write(each)
                await asyncio.sleep(0.02)
            written.set()

        async with serving(answer) as (client, _):
            stream = client.stream("/v1/completions", {"prompt": "x"})
            assert isinstance(stream, EventStream)
            reading = asyncio.ensure_future(stream.into(chunks.append))
            await written.wait()
            await asyncio.sleep(0.2)
            assert len(chunks) < 7
            reading.cancel()
            await asyncio.wait([reading])

    asyncio.run(run())
    assert [each.text for each in chunks] == [f" w{number}" for number in range(7)]


def test_what_a_taker_raises_is_raised_by_the_stream() -> None:
    def refuse(chunk: Chunk) -> None:
        raise ArithmeticError(chunk.text)

    async def run() -> None:
        async with serving(sending(WAYS["a part an event"])) as (client, _):
            stream = client.stream("/v1/completions", {"prompt": "x"})
            assert isinstance(stream, EventStream)
            with pytest.raises(ArithmeticError, match="w0"):
                async with asyncio.timeout(5):
                    await stream.into(refuse)

    asyncio.run(run())


def test_a_taker_may_raise_at_a_cut_off_end_too() -> None:
    def refuse(chunk: Chunk) -> None:
        if chunk.error is not None:
            raise ArithmeticError(chunk.error.message)

    async def run() -> None:
        async with serving(sending([head(), *EVENTS], close=True)) as (client, _):
            stream = client.stream("/v1/completions", {"prompt": "x"})
            assert isinstance(stream, EventStream)
            with pytest.raises(ArithmeticError, match="in the middle"):
                async with asyncio.timeout(5):
                    await stream.into(refuse)

    asyncio.run(run())


def test_a_stream_given_up_after_its_end_came_has_had_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamped_connection, "_IN_A_TURN", 0)  # only giving up makes it read
    chunks: list[Chunk] = []

    async def run() -> None:
        async with serving(sending([head(), BODY], close=True)) as (client, _):
            stream = client.stream("/v1/completions", {"prompt": "x"})
            assert isinstance(stream, EventStream)
            reading = asyncio.ensure_future(stream.into(chunks.append))
            await asyncio.sleep(0.3)
            assert not chunks
            reading.cancel()
            await asyncio.wait([reading])

    asyncio.run(run())
    assert [each.text for each in chunks] == [f" w{number}" for number in range(30)]


def test_a_loop_that_is_left_ends_its_request_without_the_collector() -> None:
    async def run() -> None:
        left = asyncio.Event()

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(CHUNKED)
            while not writer.is_closing():
                writer.write(PARTS[0])
                await asyncio.sleep(0.01)
            left.set()

        async with serving(answer) as (client, _):
            async for _chunk in client.stream("/v1/completions", {"prompt": "x"}):
                break
            async with asyncio.timeout(5):
                await left.wait()

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_streams_whose_bytes_come_together_are_stamped_before_one_is_read() -> None:
    """Reading one takes 20 ms here; eight are sent at one moment and stamped within that."""
    stamps: list[float] = []

    def slowly(chunk: Chunk) -> None:
        stamps.append(chunk.received_s)
        time.sleep(0.02)

    async def run() -> None:
        writers: list[asyncio.StreamWriter] = []

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(CHUNKED)
            writers.append(writer)
            if len(writers) == 8:
                await asyncio.sleep(0.1)
                for each in writers:
                    each.write(PARTS[0] + PARTS[-1] + LAST_PART)

        async with serving(answer) as (client, _):
            streams = [client.stream("/v1/completions", {"prompt": "x"}) for _ in range(8)]
            await asyncio.gather(*(each.into(slowly) for each in streams if isinstance(each, EventStream)))

    asyncio.run(run())
    assert len(stamps) == 8
    # Read in turns of four: the second four may have been stamped after the first were read, no later.
    spread = sorted(stamps)
    assert spread[-1] - spread[0] < 7 * 0.02


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"", b""),
        (part(b"a"), b"a"),
        (part(b"a") + part(b"bc" * 20), b"a" + b"bc" * 20),
        (b"1F\r\n" + b"x" * 31 + b"\r\n", b"x" * 31),
        (part(b"5\r\nhello\r\n"), b"5\r\nhello\r\n"),
    ],
)
def test_whole_parts_are_taken_apart(data: bytes, body: bytes) -> None:
    assert unparted(data) == body


@pytest.mark.parametrize(
    "data",
    [
        LAST_PART,
        part(b"a") + LAST_PART,
        part(b"ab")[:-1],
        part(b"ab")[:3],
        b"2\r\nabc\r\n",
        b"+2\r\nab\r\n",
        b"2;x\r\nab\r\n",
        b"data: x\r\n",
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert unparted(data) is None


def test_our_connections_are_those_that_aiohttp_makes() -> None:
    """The connector sets a name of aiohttp's own; with another version it may be without effect."""

    async def run() -> None:
        async with serving(sending(WAYS["with the head"])) as (client, _):
            await noted(client)
            made = client._open().connector
            assert made is not None
            pooled = [protocol for kept in made._conns.values() for protocol, _ in kept]
            assert [type(each) for each in pooled] == [stamped_connection._StampedConnection]

    asyncio.run(run())
