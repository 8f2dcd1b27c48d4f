"""The crowd job: N chats at once in one batching mode after the other, followed request by request.

It changes the worker's mode by its control route and puts it back at the end, whatever happened. It stores nothing.
This file does not know how a load is generated (``loadgen.py``) or what the figures mean (``metrics.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from mcp_core.crowd import LIVE, Crowd, CrowdPlan, CrowdRequest, CrowdRun, recipe_in
from mcp_core.errors import Cancelled, McpError
from mcp_core.evaluation.cores import pinned
from mcp_core.evaluation.loadgen import LoadResult, run_load, run_warmup
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.prompts import token_prompts
from mcp_core.jobs import Job, Outcome, write_json
from mcp_core.recipe import BatchingMode, Recipe
from mcp_core.results import Failure
from mcp_core.serving.client import Chunk, ServerClient
from mcp_core.workload import Lengths, Workload

__all__ = ["run"]

LOOK_S = 0.25


async def run(job: Job) -> Outcome:
    """Request: worker_url, recipe, plan (a CrowdPlan). Secrets: token. The answer is a Crowd."""
    plan = CrowdPlan.model_validate(job.request["plan"])
    recipe = Recipe.from_dict(job.request["recipe"])
    async with _Watched(job.request["worker_url"], job.secrets.get("token")) as client:
        board = _Board(job, client, plan)
        try:
            await _every_mode(client, recipe, board)
        except Cancelled as stopped:
            return Outcome("cancelled", stopped.as_dict(), board.crowd.model_dump(mode="json"))
        finally:
            with contextlib.suppress(McpError):  # it may have died; what it then is, the app finds out
                await client.set_recipe(recipe)
    return Outcome("done", result=board.crowd.model_dump(mode="json"))


async def _every_mode(client: _Watched, recipe: Recipe, board: _Board) -> None:
    state = await client.state()
    for mode in board.plan.modes:
        board.say(mode, f"Changing to batching {mode}.")
        await client.set_recipe(recipe_in(recipe, mode))
        async with _held(client):
            with pinned(int(state["pid"]), int(state["effective"]["threads"])):
                await _one_mode(client, state, mode, board)


async def _one_mode(client: _Watched, state: dict[str, Any], mode: BatchingMode, board: _Board) -> None:
    workload = _workload(board.plan, board.plan.modes.index(mode))
    prompts = token_prompts(workload, int(state["vocab_size"]), state["special_ids"])
    (model, *_) = await client.models()
    warm = await run_warmup(client, workload, prompts, model=model)
    _require_not_stopped(warm)
    client.begin()
    async with board.followed(mode):
        load = await run_load(client, workload, prompts, model=model)
    board.ended(mode, load)
    _require_not_stopped(load)


def _workload(plan: CrowdPlan, repeat: int) -> Workload:
    """Everybody asks once and at the same time; each mode gets prompts of its own."""
    return Workload(
        name="crowd",
        requests=plan.users,
        concurrency=plan.users,
        prompt_tokens=Lengths(min=plan.prompt_tokens, max=plan.prompt_tokens),
        output_tokens=Lengths(min=plan.output_tokens, max=plan.output_tokens),
        warmup_requests=1,
        repeat=repeat,
        smoke_test=True,
    )


def _require_not_stopped(load: LoadResult) -> None:
    if load.cancelled:
        raise Cancelled("The users were sent away.", "What they had got is shown.")


@contextlib.asynccontextmanager
async def _held(client: ServerClient) -> AsyncIterator[None]:
    """Nobody else changes the worker meanwhile."""
    await client.post_control("hold", {"purpose": "many users at once", "pid": os.getpid()})
    try:
        yield
    finally:
        with contextlib.suppress(McpError):
            await client.post_control("release")


@dataclass(slots=True)
class _Row:
    """One request while it runs; times of time.perf_counter()."""

    sent_s: float
    state: Literal["waiting", "decoding", "ok", "failed", "cancelled"] = "waiting"
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0
    timing: dict[str, float] | None = None

    def take(self, chunk: Chunk) -> None:
        if chunk.has_token:
            self.first_s = self.first_s or chunk.received_s
            self.last_s, self.state = chunk.received_s, "decoding"
            self.tokens += len(chunk.token_ids) or 1
        self.timing = (chunk.usage or {}).get("timing") or self.timing
        if chunk.error is not None:
            self.state = "failed"

    def value(self, index: int, begun_s: float) -> CrowdRequest:
        timing = self.timing or {}
        return CrowdRequest(
            index=index,
            state=self.state,
            sent_ms=(self.sent_s - begun_s) * 1e3,
            first_ms=None if self.first_s is None else (self.first_s - begun_s) * 1e3,
            last_ms=None if self.last_s is None else (self.last_s - begun_s) * 1e3,
            tokens=self.tokens,
            queue_ms=timing.get("queue_ms"),
            prefill_ms=timing.get("prefill_ms"),
        )


class _Watched(ServerClient):
    """A client whose streams can be looked at while they run."""

    begun_s = 0.0
    _rows: tuple[_Row, ...] = ()

    def begin(self) -> None:
        """Forget the streams so far; times count from now."""
        self.begun_s, self._rows = time.perf_counter(), ()

    @property
    def elapsed_ms(self) -> float:
        """Since ``begin``."""
        return (time.perf_counter() - self.begun_s) * 1e3

    def requests(self) -> tuple[CrowdRequest, ...]:
        """Every stream since ``begin``, in the order in which they were sent."""
        return tuple(row.value(index, self.begun_s) for index, row in enumerate(self._rows))

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        """As ``ServerClient.stream``."""
        row = _Row(time.perf_counter())
        self._rows += (row,)
        try:
            async for chunk in super().stream(path, body):
                row.take(chunk)
                yield chunk
        except McpError:
            row.state = "failed"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            row.state = "cancelled"
            raise
        if row.state != "failed":
            row.state = "ok"


class _Board:
    """What is known so far, in the job's folder for whoever looks."""

    def __init__(self, job: Job, client: _Watched, plan: CrowdPlan) -> None:
        self._job = job
        self._client = client
        self.plan = plan
        self.crowd = Crowd(plan=plan)

    def say(self, mode: BatchingMode, message: str, done: float = 0.0) -> None:
        """Progress: a mode counts for its share."""
        fraction = (self.plan.modes.index(mode) + done) / len(self.plan.modes)
        self._job.tell(f"batching {mode}", fraction, message)

    @contextlib.asynccontextmanager
    async def followed(self, mode: BatchingMode) -> AsyncIterator[None]:
        """Show the mode's requests again and again while the block lasts."""
        looking = asyncio.create_task(self._look_forever(mode))
        try:
            yield
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    def ended(self, mode: BatchingMode, load: LoadResult) -> None:
        """The mode's last picture, with its figures."""
        measured = summarize(load.records, load.duration_s)
        failures = (record.failure for record in load.records if record.failure is not None)
        self._put(
            mode,
            elapsed_ms=load.duration_s * 1e3,
            ended=True,
            output_tok_s=measured.output_tok_s if measured.completed else None,
            ttft_p50_ms=measured.ttft_ms.p50,
            ttft_p90_ms=measured.ttft_ms.p90,
            completed=measured.completed,
            failure=next(failures, load.death),
        )

    async def _look_forever(self, mode: BatchingMode) -> None:
        while True:
            self._put(mode, elapsed_ms=self._client.elapsed_ms)
            run = self.crowd.runs[-1]
            done = sum(each.state not in ("waiting", "decoding") for each in run.requests)
            self.say(mode, f"{done} of {self.plan.users} replies complete", done / self.plan.users)
            await asyncio.sleep(LOOK_S)

    def _put(self, mode: BatchingMode, *, elapsed_ms: float, **figures: float | bool | Failure | None) -> None:
        others = tuple(run for run in self.crowd.runs if run.mode != mode)
        now = CrowdRun.model_validate(
            {"mode": mode, "elapsed_ms": elapsed_ms, "requests": self._client.requests(), **figures}
        )
        self.crowd = Crowd(plan=self.plan, runs=(*others, now))
        write_json(self._job.folder / LIVE, self.crowd.model_dump(mode="json"))
