"""Load generator: sends a Workload to one server and records what came back.

Closed, clients wait for replies; open, requests are sent when they are due, whatever becomes of earlier ones, and
how late each was is recorded. Times are those of this process, taken when bytes arrive; how late its own event loop
runs is measured beside them. This file does not know what the records mean (``metrics.py``), whose server it is, or
what a Run is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from mcp_core.errors import McpError
from mcp_core.evaluation.arrivals import arrival_times, chats, think_times
from mcp_core.evaluation.loop_lag import loop_lag, undisturbed
from mcp_core.evaluation.prompts import Prompt, Prompts
from mcp_core.evaluation.reply_record import ReplyRecord, request_body, route_of, too_slow
from mcp_core.results import Failure, RequestRecord
from mcp_core.serving.client import Chunk, ServerClient
from mcp_core.serving.event_stream import EventStream
from mcp_core.views import Progress
from mcp_core.workload import Workload

__all__ = ["LoadResult", "OnProgress", "run_load", "run_warmup"]

OnProgress = Callable[[Progress], None]

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
    prompts: Prompts,
    *,
    model: str,
    on_progress: OnProgress | None = None,
    extra: Mapping[str, Any] = _NOTHING,
    exact: bool = False,
) -> LoadResult:
    """Send the measured requests of the workload; ``model`` is an id that the server lists.

    ``extra`` are fields of every request that this server wants beside the usual ones; ``exact`` says that it
    understands how to reply with a given number of tokens. Raises nothing but InputError for a recording that is
    not kept here: a request that fails is a record. Cancelling the task that awaits this ends the load early,
    and the result comes back with ``cancelled`` set instead of CancelledError.
    """
    target = _Target(client, prompts, model, on_progress, extra, exact)
    return await _Load(target, workload, None, "measure").run()


async def run_warmup(
    client: ServerClient,
    workload: Workload,
    prompts: Prompts,
    *,
    model: str,
    on_progress: OnProgress | None = None,
    extra: Mapping[str, Any] = _NOTHING,
    exact: bool = False,
) -> LoadResult:
    """Send the warm-up requests, with prompts of their own and one turn each; otherwise as ``run_load``."""
    target = _Target(client, prompts, model, on_progress, extra, exact)
    return await _Load(target, workload, workload.warmup_from, "warm-up").run()


@dataclass(frozen=True, slots=True)
class _Target:
    """Where requests go, what they say, and who is told how far it is."""

    client: ServerClient
    prompts: Prompts
    model: str
    on_progress: OnProgress | None
    extra: Mapping[str, Any]
    exact: bool


class _Load:
    """One load while it runs: chats (of one request each, unless the workload has some) are taken in turn."""

    def __init__(self, target: _Target, workload: Workload, first: int | None, stage: str) -> None:
        """``first`` is the index of the first warm-up request; None for what is measured."""
        self._target = target
        self._workload = workload
        self._measures = first is None
        self._chats = chats(workload) if first is None else _warmup(workload, first)
        self._total = _total(workload, target.prompts.count) if first is None else workload.warmup_requests
        self._stage = stage
        self._records: list[RequestRecord] = []
        self._dead: Failure | None = None
        self._begun_s = 0.0

    async def run(self) -> LoadResult:
        with undisturbed():
            self._begun_s = time.perf_counter()
            self._report()
            async with loop_lag() as lag:
                cancelled = await self._run_clients()
                duration_s = time.perf_counter() - self._begun_s
        records = tuple(sorted(self._records, key=lambda record: record.index))
        return LoadResult(records, duration_s, lag.p99_ms, cancelled, self._dead)

    async def _run_clients(self) -> bool:
        """Whether it was cancelled."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            if self._measures and self._workload.is_open:
                await self._send_when_due(tasks)
            else:
                tasks |= {asyncio.create_task(self._client_loop()) for _ in range(self._clients())}
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            return True
        finally:
            for task in tasks:  # where one ended in an error, the others must not go on sending
                task.cancel()
        return False

    def _clients(self) -> int:
        """Warm-up before an open load goes one after the other."""
        wanted = 1 if self._workload.is_open else self._workload.concurrency
        return wanted if self._total is None else min(wanted, self._total)

    async def _client_loop(self) -> None:
        for chat in self._chats:
            if self._over():
                return
            await self._chat(chat, self._target.prompts(chat[0]))
            await asyncio.sleep(0)  # when nothing is sent any more, others get their turn

    async def _send_when_due(self, tasks: set[asyncio.Task[None]]) -> None:
        """Every chat begins when it is due, whatever became of those before; its prompt is made ahead."""
        for due_s, chat in zip(arrival_times(self._workload), self._chats, strict=False):
            if self._workload.duration_s is not None and due_s >= self._workload.duration_s:
                return
            opening = self._target.prompts(chat[0])
            if self._dead is None:
                await asyncio.sleep(self._begun_s + due_s - time.perf_counter())
            elif self._total is None:
                return
            else:
                await asyncio.sleep(0)
            task = asyncio.create_task(self._chat(chat, opening, due_s))
            tasks.add(task)
            task.add_done_callback(_forgotten_by(tasks))

    async def _chat(self, chat: range, opening: Prompt, due_s: float | None = None) -> None:
        """One turn after the other; a turn that failed is left out of what later ones repeat."""
        asked, think_s, said = opening, think_times(self._workload, chat[0]), _Said()
        for index in chat:
            if index != chat[0]:
                await asyncio.sleep(0 if self._dead else next(think_s))
                if self._over():
                    return
                asked = said.continued(self._target.prompts, index, opening)
            record, reply = await self._turn(asked, due_s if index == chat[0] else None)
            if record.status == "ok" and reply is not None:
                said = _Said(asked, reply, (record.prompt_tokens or 0) + (record.output_tokens or 0))

    async def _turn(self, prompt: Prompt, due_s: float | None) -> tuple[RequestRecord, ReplyRecord | None]:
        if self._dead is not None:
            record = self._never_answered(prompt.index, self._dead)
            self._keep(record)
            return record, None
        record, reply = await self._send(prompt, due_s)
        self._keep(record)
        if record.failure is not None and record.failure.kind in _SUSPICIOUS:
            await self._probe(record.failure)
        return record, reply

    async def _send(self, prompt: Prompt, due_s: float | None) -> tuple[RequestRecord, ReplyRecord]:
        target = self._target
        body = request_body(prompt, target.model, exact=target.exact) | dict(target.extra)
        reply = ReplyRecord(prompt, self._begun_s, due_s)
        try:
            async with asyncio.timeout(self._workload.timeout_s):
                await _noted(target.client.stream(route_of(prompt), body), reply)
        except TimeoutError:
            return reply.failed(too_slow(self._workload.timeout_s)), reply
        except McpError as error:
            return reply.failed(Failure.of(error)), reply
        except asyncio.CancelledError:
            self._keep(reply.record("cancelled"))
            raise
        return reply.ended(), reply

    async def _probe(self, failure: Failure) -> None:
        """After a failure that a dead server gives too: ask it; without an answer, nothing more is sent."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._target.client.models()
        except (TimeoutError, McpError):
            self._dead = self._dead or failure

    def _over(self) -> bool:
        """Whether time is up; a server that died ends a load that has no number of requests."""
        if not self._measures or self._workload.duration_s is None:
            return False
        return self._dead is not None or time.perf_counter() - self._begun_s >= self._workload.duration_s

    def _never_answered(self, index: int, failure: Failure) -> RequestRecord:
        sent_ms = (time.perf_counter() - self._begun_s) * 1e3
        return RequestRecord(index=index, status="failed", sent_ms=sent_ms, failure=failure)

    def _keep(self, record: RequestRecord) -> None:
        self._records.append(record)
        self._report()

    def _report(self) -> None:
        if self._target.on_progress is None or self._total == 0:
            return
        done, elapsed_s = len(self._records), time.perf_counter() - self._begun_s
        self._target.on_progress(
            self._by_time(done, elapsed_s) if self._total is None else self._by_count(done, elapsed_s)
        )

    def _by_count(self, done: int, elapsed_s: float) -> Progress:
        assert self._total
        return Progress(
            stage=self._stage,
            fraction=done / self._total,
            message=f"{done} of {self._total} requests",
            elapsed_s=elapsed_s,
            remaining_s=elapsed_s / done * (self._total - done) if done else None,
        )

    def _by_time(self, done: int, elapsed_s: float) -> Progress:
        whole_s = self._workload.duration_s or 0.0
        return Progress(
            stage=self._stage,
            fraction=min(1.0, elapsed_s / whole_s),
            message=f"{done} request{'' if done == 1 else 's'}",
            elapsed_s=elapsed_s,
            remaining_s=max(0.0, whole_s - elapsed_s),
        )


async def _noted(stream: AsyncIterator[Chunk], reply: ReplyRecord) -> None:
    """Note every chunk; without waking this task for each where the stream can do so."""
    if isinstance(stream, EventStream):
        await stream.into(reply.take)
        return
    async for chunk in stream:
        reply.take(chunk)


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said in a chat until now; nothing in its first turn."""

    prompt: Prompt | None = None
    reply: ReplyRecord | None = None
    tokens: int = 0

    def continued(self, prompts: Prompts, index: int, opening: Prompt) -> Prompt:
        """The next turn's prompt, which a server may know all but the new part of."""
        if self.prompt is None or self.reply is None:
            return prompts.follow_up(index, opening, (), "")
        asked = prompts.follow_up(index, self.prompt, self.reply.token_ids, self.reply.text)
        return replace(asked, shared_tokens=self.tokens)


def _forgotten_by(tasks: set[asyncio.Task[None]]) -> Callable[[asyncio.Task[None]], None]:
    """Drops a task that is done, unless it has an error that somebody must see."""

    def forget(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            tasks.discard(task)

    return forget


def _total(workload: Workload, prompts: int | None) -> int | None:
    """Requests there will be; None when time alone ends it."""
    if workload.duration_s is not None:
        return None
    return workload.requests if prompts is None else min(workload.requests, prompts)


def _warmup(workload: Workload, first: int) -> Iterator[range]:
    return (range(index, index + 1) for index in range(first, first + workload.warmup_requests))
