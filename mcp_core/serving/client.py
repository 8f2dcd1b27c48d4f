"""ServerClient: what is said to a worker, or to any OpenAI endpoint, over HTTP.

This file does not know who started the server, what a conversation is, or how a load is shaped.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import aiohttp

from mcp_core.errors import Busy, ContextTooLong, McpError, QueueFull, RequestRejected, WorkerDied
from mcp_core.generation import EngineStats
from mcp_core.memory_readings import MemoryAnalysis
from mcp_core.monitoring.latency import RecentLatency
from mcp_core.recipe import Recipe
from mcp_core.results import Failure, Memory, Prediction
from mcp_core.serving.chunk import Chunk
from mcp_core.serving.event_stream import EventStream
from mcp_core.serving.stamped_connection import StampedConnector
from mcp_core.workload import Workload

__all__ = ["Chunk", "Look", "ServerClient", "open_session"]

CONNECT_TIMEOUT_S = 5.0
CONTROL_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 30.0
# A kept connection that was closed meanwhile breaks at once; one that breaks later had taken the request.
_STALE_WITHIN_S = 1.0

_STATS_FIELDS = frozenset(each.name for each in fields(EngineStats))


@dataclass(frozen=True, slots=True)
class Look:
    """One answer of ``GET /control/stats``; None where this kind of worker does not tell."""

    stats: EngineStats
    memory: Memory | None = None
    latency: RecentLatency | None = None


@dataclass(slots=True)
class _Connection:
    """Which connection a request went out on: one kept from an earlier request, or its own."""

    kept: bool = False


async def _note_kept(_session: aiohttp.ClientSession, context: Any, _params: Any) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.kept = True


def open_session() -> aiohttp.ClientSession:
    """A session for any number of streams at once: only connecting has a time limit."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_kept)
    return aiohttp.ClientSession(
        trace_configs=[trace],
        # Below uvicorn's 5 s, so that no request goes out on a connection that the server is closing.
        connector=StampedConnector(limit=0, keepalive_timeout=3.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
    )


class ServerClient:
    """One server, by its base URL (with or without ``/v1``) and bearer token.

    ``control_url`` is where ``/control`` is answered, if not there. Without ``session`` it opens its own, closed by
    ``close()`` or at the end of ``async with``.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        session: aiohttp.ClientSession | None = None,
        control_url: str | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._control_url = control_url or self.url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session
        self._owns_session = session is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session if it is this client's own."""
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        """Post to ``/v1/completions`` or ``/v1/chat/completions`` and yield every event as it arrives.

        Raises before the first chunk: RequestRejected, ContextTooLong, QueueFull, Busy, WorkerDied, McpError.
        After it, what goes wrong is the ``error`` of the last chunk. A stream that yields no error is whole. Unless
        a subclass made something else of it, it is an EventStream.
        """
        asked = {"stream": True, "stream_options": {"include_usage": True}} | body
        return EventStream(lambda: self._post(path, asked), lambda: Failure.of(self._cut_off()))

    async def whole(self, path: str, body: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Post to one of the two routes and wait for the whole answer. Raises as ``stream``, McpError in time."""
        return await self._request("POST", path, body, timeout_s)

    async def state(self) -> dict[str, Any]:
        """``GET /control/state``: what the worker really runs."""
        return await self.control("GET", "state")

    async def stats(self) -> EngineStats:
        """``GET /control/stats``: the engine's counters."""
        return (await self.stats_and_memory())[0]

    async def stats_and_memory(self) -> tuple[EngineStats, Memory | None]:
        """The engine's counters and the worker's memory, read together."""
        look = await self.look()
        return look.stats, look.memory

    async def look(self) -> Look:
        """What a worker says of itself once a second: counters, memory, and latencies of the last minute."""
        document = await self.control("GET", "stats")
        memory, latency = document.get("memory"), document.get("latency")
        counters = {name: value for name, value in document.items() if name in _STATS_FIELDS}
        return Look(
            EngineStats(**counters),
            Memory.model_validate(memory) if memory else None,
            RecentLatency.from_dict(latency) if latency else None,
        )

    async def memory_analysis(self, most: int | None = None) -> MemoryAnalysis:
        """Where the worker's memory goes; of loading and of serving at most ``most`` points each."""
        name = "memory" if most is None else f"memory?most={most}"
        return MemoryAnalysis.model_validate(await self.control("GET", name))

    async def prediction(self, workload: Workload) -> Prediction:
        """What the worker's footprint was predicted to be under this workload, without any correction."""
        return Prediction.model_validate(await self.control("POST", "prediction", workload.model_dump(mode="json")))

    async def memory_snapshot(self, seconds: float) -> Path:
        """Record the allocator's work for so long; the file, on the worker's machine. RequestRejected on a CPU."""
        answer = await self.control("POST", "snapshot", {"seconds": seconds}, timeout_s=seconds + 60)
        return Path(answer["snapshot"])

    async def models(self) -> tuple[str, ...]:
        """``GET /v1/models``: the ids that the server answers to."""
        document = await self._request("GET", "/v1/models", None, CONTROL_TIMEOUT_S)
        return tuple(str(row["id"]) for row in document.get("data", ()))

    async def reset_peaks(self) -> dict[str, Any]:
        """Peak memory counts from now."""
        return await self.control("POST", "reset-peaks")

    async def set_recipe(self, recipe: Recipe) -> dict[str, Any]:
        """Change the live fields. Raises RequestRejected for any other, Busy while a benchmark runs."""
        document = recipe.model_dump(mode="json")
        return await self.control("POST", "recipe", document, timeout_s=2 * DRAIN_TIMEOUT_S)

    async def drain(self, timeout_s: float = DRAIN_TIMEOUT_S) -> dict[str, Any]:
        """Refuse new requests and wait for running ones, at most ``timeout_s``."""
        return await self.control("POST", "drain", {"timeout_s": timeout_s}, timeout_s=timeout_s + 5)

    async def shutdown(self) -> dict[str, Any]:
        """Ask the worker to end."""
        return await self.control("POST", "shutdown", timeout_s=2.0)

    async def control(
        self, method: str, name: str, body: Any = None, *, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> dict[str, Any]:
        """Any control route of our worker. Raises as ``stream`` does, McpError when time runs out."""
        return await self._request(method, f"/control/{name}", body, timeout_s, self._control_url)

    async def post_control(self, name: str, body: Any = None) -> dict[str, Any]:
        """``POST /control/{name}``."""
        return await self.control("POST", name, body)

    async def _request(
        self, method: str, path: str, body: Any, timeout_s: float, base: str | None = None
    ) -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        posted = {} if body is None and method == "POST" else body
        try:
            async with self._open().request(
                method, (base or self.url) + path, json=posted, headers=self._headers, timeout=limit
            ) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                document = await response.json()
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            self._raise_unreachable(error)
        return document if isinstance(document, dict) else {}

    async def _send(self, path: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
        """Once more where a kept connection turns out to be closed: llama.cpp's server closes one after every
        stream without saying so. A request that a server may have taken is never sent twice."""
        while True:
            connection, begun_s = _Connection(), time.perf_counter()
            try:
                return await self._open().post(
                    self.url + path, json=body, headers=self._headers, trace_request_ctx=connection
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not connection.kept or time.perf_counter() - begun_s > _STALE_WITHIN_S:
                    raise

    async def _post(self, path: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
        try:
            response = await self._send(path, body)
            if response.status >= 400:
                async with response:
                    raise await _refusal(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            self._raise_unreachable(error)
        return response

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session()
        return self._session

    def _cut_off(self) -> WorkerDied:
        return WorkerDied(
            "The connection ended in the middle of the reply.",
            "The server at the other end probably died; its log says why. Load the model again.",
        )

    def _raise_unreachable(self, error: Exception) -> NoReturn:
        if isinstance(error, (TimeoutError, aiohttp.ConnectionTimeoutError)):
            raise McpError(
                f"The server at {self.url} did not answer in time.", "It may be busy; try again."
            ) from error
        if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
            raise WorkerDied(
                f"The server at {self.url} does not answer: {_reason(error)}.",
                "It has ended or was never started; load the model again, or check the URL.",
            ) from error
        raise McpError(
            f"The server at {self.url} gave an answer that is not understood: {_reason(error)}.",
            "Is it an OpenAI-compatible server?",
        ) from error


async def _refusal(response: aiohttp.ClientResponse) -> McpError:
    """The error that a 4xx or 5xx answer is, with the server's own words."""
    error = _error_document(await response.text())
    message = str(error.get("message") or f"The server answered HTTP {response.status} {response.reason}.")
    hint = str(error.get("hint") or "")
    status = response.status
    if error.get("code") == "context_length_exceeded":
        return ContextTooLong(message, hint or "Shorten the prompt or ask for fewer tokens.")
    if status in (401, 403):
        return McpError(message, hint or "Check the API key.")
    if status == 404:
        if not error.get("code"):  # the route, not the model
            message = f"The server has nothing at {response.url.path} (404: {message})."
        return RequestRejected(message, hint or "Check the URL and the model's name.", param=error.get("param"))
    if status == 409:
        return Busy(message, hint or "Wait until it is free.")
    if status in (429, 503, 529):
        return QueueFull(message, hint or _retry_hint(response))
    if status < 500:
        return RequestRejected(message, hint, param=error.get("param"))
    return McpError(message, hint or "The server's log says more.")


def _error_document(text: str) -> dict[str, Any]:
    """``{"error": {...}}`` of OpenAI, ``{"detail": ...}`` of FastAPI, or plain text."""
    try:
        document = json.loads(text)
    except ValueError:
        return {"message": text.strip()[:500]}
    error = document.get("error") or document.get("detail") if isinstance(document, dict) else document
    if isinstance(error, dict):
        return error
    if isinstance(error, list):  # of FastAPI, a row a field: each repeats what was sent, which is not to be kept
        error = "; ".join(_field_error(row) for row in error if isinstance(row, dict))
    return {"message": str(error)} if error else {}


def _field_error(row: dict[str, Any]) -> str:
    """As "body.prompt: Input should be a valid string"."""
    return f"{'.'.join(map(str, row.get('loc') or ()))}: {row.get('msg')}"


def _retry_hint(response: aiohttp.ClientResponse) -> str:
    wait = response.headers.get("Retry-After")
    return f"Try again in {wait} s." if wait else "Try again later."


def _reason(error: Exception) -> str:
    os_error = getattr(error, "os_error", None)
    return str(os_error.strerror if os_error and os_error.strerror else error) or type(error).__name__
