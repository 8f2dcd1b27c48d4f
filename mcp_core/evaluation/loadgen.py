"""Load generator: a closed loop of clients that send a Workload to one server and record what came back.

Times are those of this process, taken when bytes arrive; how late its own event loop runs is measured beside
them. This file does not know what the records mean (``metrics.py``), whose server it is, or what a Run is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from mcp_core.errors import McpError
from mcp_core.evaluation.prompts import Prompt, PromptAt
from mcp_core.results import Failure, RequestRecord
from mcp_core.serving.client import Chunk, ServerClient
from mcp_core.views import Progress
from mcp_core.workload import Workload

__all__ = ["LoadResult", "OnProgress", "request_body", "run_load", "run_warmup"]

OnProgress = Callable[[Progress], None]

LAG_TICK_S = 0.005
PROBE_TIMEOUT_S = 5.0
_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Kinds of failure after which the server may be gone; others came from a server that answers.
_SUSPICIOUS = frozenset({"worker", "error"})


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load gave. ``duration_s`` is wall time from its beginning to the end of its last request.

    ``lag_p99_ms`` is None when the load was over before its loop was looked at once. When ``cancelled``, the
    requests that were running are records of that status and those not yet sent have no record. ``death`` is why
    the server was given up midway; what was not yet sent has failed for that reason.
    """

    records: tuple[RequestRecord, ...]
    duration_s: float
    lag_p99_ms: float | None
    cancelled: bool
    death: Failure | None


async def run_load(
    client: ServerClient,
    workload: Workload,
    prompts: PromptAt,
    *,
    model: str,
    on_progress: OnProgress | None = None,
    extra: Mapping[str, Any] = _NOTHING,
) -> LoadResult:
    """Send the measured requests of the workload; ``model`` is an id that the server lists.

    ``extra`` are fields of every request that this server wants beside the usual ones.
    Raises nothing: a request that fails is a record. Cancelling the task that awaits this ends the load early,
    and the result comes back with ``cancelled`` set instead of CancelledError.
    """
    indexes = range(workload.requests)
    return await _Load(client, workload, prompts, model, indexes, "measure", on_progress, extra).run()


async def run_warmup(
    client: ServerClient,
    workload: Workload,
    prompts: PromptAt,
    *,
    model: str,
    on_progress: OnProgress | None = None,
    extra: Mapping[str, Any] = _NOTHING,
) -> LoadResult:
    """Send the warm-up requests, with prompts of their own; otherwise as ``run_load``."""
    indexes = range(workload.requests, workload.requests + workload.warmup_requests)
    return await _Load(client, workload, prompts, model, indexes, "warm-up", on_progress, extra).run()


def request_body(prompt: Prompt, model: str) -> dict[str, Any]:
    """The body for ``/v1/completions``. Token ids ask for an exact reply length, which our worker, vLLM and SGLang
    understand; text goes to unknown servers with standard fields, and the length they chose is recorded."""
    body: dict[str, Any] = {"model": model, "max_tokens": prompt.output_tokens, "temperature": 0.0}
    if isinstance(prompt.content, str):
        return body | {"prompt": prompt.content}
    return body | {"prompt": list(prompt.content), "min_tokens": prompt.output_tokens, "ignore_eos": True}


class _Load:
    """One load while it runs: clients take the next index from one iterator until it is empty."""

    def __init__(
        self,
        client: ServerClient,
        workload: Workload,
        prompts: PromptAt,
        model: str,
        indexes: range,
        stage: str,
        on_progress: OnProgress | None,
        extra: Mapping[str, Any],
    ) -> None:
        self._client = client
        self._extra = extra
        self._workload = workload
        self._prompts = prompts
        self._model = model
        self._total = len(indexes)
        self._waiting: Iterator[int] = iter(indexes)
        self._stage = stage
        self._on_progress = on_progress
        self._records: list[RequestRecord] = []
        self._dead: Failure | None = None
        self._begun_s = 0.0

    async def run(self) -> LoadResult:
        self._begun_s = time.perf_counter()
        self._report()
        async with _loop_lag() as lag:
            cancelled = await self._run_clients()
            duration_s = time.perf_counter() - self._begun_s
        records = tuple(sorted(self._records, key=lambda record: record.index))
        return LoadResult(records, duration_s, lag.p99_ms, cancelled, self._dead)

    async def _run_clients(self) -> bool:
        """Whether it was cancelled."""
        count = min(self._workload.concurrency, self._total)
        clients = [asyncio.create_task(self._client_loop()) for _ in range(count)]
        try:
            await asyncio.gather(*clients)
        except asyncio.CancelledError:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            return True
        return False

    async def _client_loop(self) -> None:
        for index in self._waiting:
            if self._dead is not None:
                self._keep(self._never_answered(index, self._dead))
                await asyncio.sleep(0)
                continue
            record = await self._send(index)
            self._keep(record)
            if record.failure is not None and record.failure.kind in _SUSPICIOUS:
                await self._probe(record.failure)

    async def _send(self, index: int) -> RequestRecord:
        prompt = self._prompts(index)
        body, sha256 = request_body(prompt, self._model) | dict(self._extra), prompt.sha256
        reply = _Reply(index, sha256, self._begun_s)
        try:
            async with asyncio.timeout(self._workload.timeout_s):
                async for chunk in self._client.stream("/v1/completions", body):
                    reply.take(chunk)
        except TimeoutError:
            return reply.failed(_too_slow(self._workload.timeout_s))
        except McpError as error:
            return reply.failed(Failure.of(error))
        except asyncio.CancelledError:
            self._keep(reply.record("cancelled"))
            raise
        return reply.ended()

    async def _probe(self, failure: Failure) -> None:
        """After a failure that a dead server gives too: ask it; without an answer, nothing more is sent."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._client.models()
        except (TimeoutError, McpError):
            self._dead = self._dead or failure

    def _never_answered(self, index: int, failure: Failure) -> RequestRecord:
        sent_ms = (time.perf_counter() - self._begun_s) * 1e3
        return RequestRecord(index=index, status="failed", sent_ms=sent_ms, failure=failure)

    def _keep(self, record: RequestRecord) -> None:
        self._records.append(record)
        self._report()

    def _report(self) -> None:
        if self._on_progress is None or not self._total:
            return
        done, elapsed_s = len(self._records), time.perf_counter() - self._begun_s
        self._on_progress(
            Progress(
                stage=self._stage,
                fraction=done / self._total,
                message=f"{done} of {self._total} requests",
                elapsed_s=elapsed_s,
                remaining_s=elapsed_s / done * (self._total - done) if done else None,
            )
        )


class _Reply:
    """One reply while it arrives; its clock starts when this is made."""

    def __init__(self, index: int, prompt_sha256: str, begun_s: float) -> None:
        self._index = index
        self._prompt_sha256 = prompt_sha256
        self._chunk_ms: list[float] = []
        self._chunk_tokens: list[int] = []
        self._usage: dict[str, Any] = {}
        self._failure: Failure | None = None
        self._sent_s = time.perf_counter()
        self._sent_ms = (self._sent_s - begun_s) * 1e3

    def take(self, chunk: Chunk) -> None:
        if chunk.has_token:
            self._chunk_ms.append((chunk.received_s - self._sent_s) * 1e3)
            self._chunk_tokens.append(len(chunk.token_ids) or 1)
        self._usage = chunk.usage or self._usage
        self._failure = chunk.error or self._failure

    def ended(self) -> RequestRecord:
        if self._failure is not None:
            return self.failed(self._failure)
        if not self._chunk_ms:
            return self.failed(Failure(kind="error", message="The reply carried no token."))
        return self.record("ok")

    def failed(self, failure: Failure) -> RequestRecord:
        return self.record("failed", failure)

    def record(self, status: Literal["ok", "failed", "cancelled"], failure: Failure | None = None) -> RequestRecord:
        details = self._usage.get("prompt_tokens_details") or {}
        return RequestRecord(
            index=self._index,
            status=status,
            sent_ms=self._sent_ms,
            ttft_ms=self._chunk_ms[0] if self._chunk_ms else None,
            e2e_ms=self._chunk_ms[-1] if status == "ok" else None,
            chunk_ms=tuple(self._chunk_ms),
            chunk_tokens=tuple(self._chunk_tokens),
            prompt_tokens=self._usage.get("prompt_tokens"),
            output_tokens=self._usage.get("completion_tokens"),
            cached_tokens=details.get("cached_tokens"),
            prompt_sha256=self._prompt_sha256,
            server_timing=self._usage.get("timing"),
            failure=failure,
        )


def _too_slow(timeout_s: float) -> Failure:
    return Failure.of(
        McpError(f"The reply was not complete after {timeout_s:g} s.", "Raise timeout_s in the Workload.")
    )


@dataclass(slots=True)
class _Lag:
    """Lateness of this loop's own ticks, ms. The selector rounds waits up to 1 ms, which is part of it."""

    late_ms: list[float] = field(default_factory=list)

    @property
    def p99_ms(self) -> float | None:
        return float(np.percentile(self.late_ms, 99)) if self.late_ms else None

    async def tick_forever(self) -> None:
        while True:
            due_s = time.perf_counter() + LAG_TICK_S
            await asyncio.sleep(LAG_TICK_S)
            self.late_ms.append((time.perf_counter() - due_s) * 1e3)


@contextlib.asynccontextmanager
async def _loop_lag() -> AsyncIterator[_Lag]:
    lag = _Lag()
    ticking = asyncio.create_task(lag.tick_forever())
    try:
        yield lag
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
