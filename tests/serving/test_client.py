from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from mcp_core.errors import Busy, ContextTooLong, McpError, QueueFull, RequestRejected, WorkerDied
from mcp_core.recipe import Recipe
from mcp_core.serving import client as client_module
from mcp_core.serving.client import Chunk, ServerClient

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def event(**document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def token(text: str, token_id: int) -> bytes:
    return event(choices=[{"index": 0, "text": text, "token_ids": [token_id], "finish_reason": None}])


def sending(*pieces: bytes, cut: bool = False) -> Handler:
    """A handler that writes these pieces, each on its own, and cuts the connection after them if asked."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.005)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handle


def answering(status: int, document: Any, **headers: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(document, status=status, headers=headers)

    return handle


def with_server(
    handler: Handler, use: Callable[[ServerClient], Awaitable[Any]], token: str | None = None, suffix: str = ""
) -> Any:
    """What ``use`` returns for a client of a server that answers everything with ``handler``."""

    async def run() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            async with ServerClient(f"http://{host}:{port}{suffix}", token) as client:
                return await use(client)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def chunks_of(handler: Handler, **options: Any) -> list[Chunk]:
    async def use(client: ServerClient) -> list[Chunk]:
        return [chunk async for chunk in client.stream("/v1/completions", {"prompt": "x"})]

    found: list[Chunk] = with_server(handler, use, **options)
    return found


def test_chunks_carry_text_tokens_finish_and_usage() -> None:
    last = event(
        choices=[{"text": "b", "token_ids": [8], "finish_reason": "length"}], usage={"completion_tokens": 2}
    )
    chunks = chunks_of(sending(token("a", 7), last, b"data: [DONE]\n\n"))
    assert [chunk.text for chunk in chunks] == ["a", "b"]
    assert [chunk.token_ids for chunk in chunks] == [(7,), (8,)]
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage == {"completion_tokens": 2}
    assert not any(chunk.error for chunk in chunks)
    assert chunks[0].received_s < chunks[1].received_s


def test_events_split_anywhere_and_joined_are_read_the_same() -> None:
    whole = token("é", 1) + b": a comment\r\n" + token("ü", 2).replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"
    for size in (1, 7, len(whole)):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        chunks = chunks_of(sending(*pieces))
        assert [(chunk.text, chunk.token_ids) for chunk in chunks] == [("é", (1,)), ("ü", (2,))]


def test_chat_deltas_and_an_event_with_usage_only() -> None:
    role = event(choices=[{"delta": {"role": "assistant", "content": None}}])
    word = event(choices=[{"delta": {"content": "hi"}}])
    usage = event(choices=[], usage={"completion_tokens": 1})
    chunks = chunks_of(sending(role, word, usage, b"data: [DONE]\n\n"))
    assert [chunk.has_token for chunk in chunks] == [False, True, False]
    assert chunks[-1].usage == {"completion_tokens": 1}


def test_a_token_without_text_is_a_token() -> None:
    assert chunks_of(sending(token("", 5), b"data: [DONE]\n\n"))[0].has_token


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_without_done_ends_in_an_error(cut: bool) -> None:
    chunks = chunks_of(sending(token("a", 7), cut=cut))
    assert chunks[0].text == "a"
    assert chunks[-1].error is not None
    assert chunks[-1].error.kind == "worker"
    assert chunks[-1].error.hint


def test_an_error_event_ends_the_stream_with_its_words() -> None:
    failure = event(error={"message": "out of memory", "kind": "oom", "hint": "less"})
    chunks = chunks_of(sending(token("a", 7), failure, token("never", 8), b"data: [DONE]\n\n"))
    assert len(chunks) == 2
    assert chunks[-1].error is not None
    assert chunks[-1].error.model_dump() == {"kind": "oom", "message": "out of memory", "hint": "less"}


def test_an_event_that_is_not_json_is_an_error() -> None:
    for payload in (b"data: {oops\n\n", b"data: [1]\n\n"):
        assert chunks_of(sending(payload))[-1].error is not None


@pytest.mark.parametrize(
    "document",
    [
        {"choices": [None]},
        {"choices": {"text": "a"}},
        {"choices": [{"text": ["a"]}]},
        {"choices": [{"delta": "a"}]},
        {"choices": [{"text": "a", "token_ids": 7}]},
        {"choices": [], "usage": [1]},
        {"choices": [], "usage": {"prompt_tokens": "many"}},
        {"choices": [], "usage": {"prompt_tokens_details": 3}},
    ],
)
def test_an_event_of_another_form_is_an_error_and_ends_nothing_else(document: dict[str, Any]) -> None:
    last = chunks_of(sending(event(**document)))[-1]
    assert last.error is not None
    assert "form that is not understood" in last.error.message


@pytest.mark.parametrize(
    ("status", "document", "expected", "words"),
    [
        (400, {"error": {"message": "bad top_p", "param": "top_p"}}, RequestRejected, "bad top_p"),
        (400, {"error": {"message": "long", "code": "context_length_exceeded"}}, ContextTooLong, "long"),
        (404, {"detail": "Not Found"}, RequestRejected, "Not Found"),
        (404, {"detail": "Not Found"}, RequestRejected, "/v1/"),
        (401, {"error": {"message": "who are you"}}, McpError, "who are you"),
        (409, {"error": {"message": "measuring"}}, Busy, "measuring"),
        (503, {"error": {"message": "full"}}, QueueFull, "full"),
        (429, {}, QueueFull, "HTTP 429"),
        (500, "oops", McpError, "oops"),
    ],
)
def test_refusals_are_errors_with_the_servers_words(
    status: int, document: Any, expected: type[McpError], words: str
) -> None:
    with pytest.raises(expected, match=words) as caught:
        chunks_of(answering(status, document, **{"Retry-After": "7"}))
    assert type(caught.value) is expected
    assert caught.value.hint or status == 400
    if expected is QueueFull:
        assert "7 s" in caught.value.hint
    if isinstance(caught.value, RequestRejected) and status == 400 and words == "bad top_p":
        assert caught.value.param == "top_p"


def test_what_was_sent_is_not_repeated_by_a_refusal() -> None:
    row = {
        "type": "string_type",
        "loc": ["body", "prompt"],
        "msg": "Input should be a string",
        "input": "my secret",
    }
    with pytest.raises(RequestRejected, match=r"^body\.prompt: Input should be a string$"):
        chunks_of(answering(422, {"detail": [row]}))


def test_nobody_at_the_port_is_a_dead_worker() -> None:
    async def run() -> None:
        async with ServerClient("http://127.0.0.1:9") as client:
            with pytest.raises(WorkerDied, match=r"127\.0\.0\.1:9") as caught:
                await client.state()
            assert caught.value.hint
            with pytest.raises(WorkerDied):
                await anext(client.stream("/v1/completions", {}))

    asyncio.run(run())


def test_a_silent_server_is_given_up() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async def use(client: ServerClient) -> None:
        with pytest.raises(McpError, match="in time"):
            await client.control("GET", "state", timeout_s=0.1)

    with_server(silent, use)


def test_the_key_and_the_v1_suffix_of_any_openai_endpoint() -> None:
    asked: list[tuple[str, str | None]] = []

    async def models(request: web.Request) -> web.StreamResponse:
        asked.append((request.path, request.headers.get("Authorization")))
        return web.json_response({"data": [{"id": "a"}, {"id": "b"}]})

    found = with_server(models, lambda client: client.models(), token="secret", suffix="/v1/")
    assert found == ("a", "b")
    assert asked == [("/v1/models", "Bearer secret")]


def test_stats_keep_known_counters_and_memory() -> None:
    document = {"running": 2, "output_tokens_total": 9, "newer": 1, "memory": {"peak_bytes": 5}}
    stats, memory = with_server(answering(200, document), lambda client: client.stats_and_memory())
    assert (stats.running, stats.output_tokens_total) == (2, 9)
    assert memory.peak_bytes == 5


def test_control_routes_post_json() -> None:
    asked: dict[str, Any] = {}

    async def keep(request: web.Request) -> web.StreamResponse:
        asked[request.path] = await request.json()
        return web.json_response({})

    async def use(client: ServerClient) -> None:
        await client.set_recipe(Recipe(dtype="fp32"))
        await client.reset_peaks()
        await client.drain(3.0)
        await client.shutdown()

    with_server(keep, use)
    assert Recipe.from_dict(asked.pop("/control/recipe")).dtype == "fp32"
    assert asked == {
        "/control/reset-peaks": {},
        "/control/drain": {"timeout_s": 3.0},
        "/control/shutdown": {},
    }


def test_leaving_a_stream_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(token("a", 1))
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async def use(client: ServerClient) -> None:
        async def read() -> None:
            async for _ in client.stream("/v1/completions", {}):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait_for(gone.wait(), 2)

    with_server(endless, use)


def test_a_connection_that_was_closed_without_a_word_is_not_a_lost_request() -> None:
    """As llama.cpp's server does after every stream: its header promises to keep the connection."""

    async def run() -> tuple[int, int]:
        connections = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            task = asyncio.current_task()
            assert task is not None
            answering.append(task)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # opened and given up
                await reader.readuntil(b"\r\n\r\n")
                body = token("a", 1) + b"data: [DONE]\n\n"
                head = f"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
                await asyncio.sleep(0.002)  # the client's next request is on its way by now
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        answering: list[asyncio.Task[Any]] = []
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        answered = 0
        async with ServerClient(f"http://127.0.0.1:{port}") as client:
            for _ in range(20):
                chunks = [each async for each in client.stream("/v1/completions", {"prompt": "a"})]
                answered += chunks[-1].error is None
        async with asyncio.timeout(5):
            await asyncio.gather(*answering)
        server.close()
        return answered, connections

    answered, connections = asyncio.run(run())
    assert answered == 20
    assert connections == 20


@pytest.mark.parametrize(("keeps", "sent"), [(False, 1), (True, 2)], ids=["its-own", "kept"])
def test_a_request_that_a_server_took_is_never_sent_twice(
    monkeypatch: pytest.MonkeyPatch, keeps: bool, sent: int
) -> None:
    """A server that works on a request and then breaks the connection: the request has failed, once."""
    monkeypatch.setattr(client_module, "_STALE_WITHIN_S", 0.05)
    requests = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        if keeps and requests == 1:
            return web.Response(body=token("a", 1) + b"data: [DONE]\n\n")
        await asyncio.sleep(0.1 if keeps else 0)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def use(client: ServerClient) -> None:
        for _ in range(sent):
            async for _ in client.stream("/v1/completions", {"prompt": "x"}):
                pass

    with pytest.raises(WorkerDied):
        with_server(handle, use)
    assert requests == sent
