"""The profile job: a running worker recorded while it is sent a load (or whatever others send it), the trace kept.

This file does not know how steps are recorded (``inference/profiling.py``) or read (``trace_reading.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from mcp_core import paths
from mcp_core.errors import Cancelled, InputError, McpError, error_from
from mcp_core.evaluation.chrome_trace import read_trace, uncollected
from mcp_core.evaluation.prompts import token_prompts
from mcp_core.evaluation.reply_record import request_body
from mcp_core.evaluation.trace_finishing import finished
from mcp_core.evaluation.trace_reading import summarize
from mcp_core.evaluation.trace_store import KeptTrace, keep
from mcp_core.jobs import Job, Outcome
from mcp_core.profile_plan import ProfileLoad, ProfilePlan, require_traceable
from mcp_core.recipe import Recipe
from mcp_core.results import Failure, new_run_id, now
from mcp_core.serving.client import ServerClient
from mcp_core.trace_summary import RawTrace
from mcp_core.workload import Lengths, Workload

__all__ = ["Tell", "answer", "profile", "run"]

# stage, fraction, message
Tell = Callable[[str, float | None, str], None]

# Writing a trace after the last step: 25,000 events take about a second.
_WRITING_S = 120.0
_LOOK_S = 0.25
_STOP_S = 4.5  # a job that is cancelled has 5 s
# A raw trace that old belongs to no recording any more.
_LEFT_OVER_S = 3600.0


async def run(job: Job) -> Outcome:
    """Request: worker_url, control_url, plan, load (null: whatever others send), run_id. Secrets: token.

    The answer is {traces: [id], summary: TraceSummary of the first}.
    """
    plan = ProfilePlan.model_validate(job.request["plan"])
    load = ProfileLoad.model_validate(job.request["load"]) if job.request.get("load") else None
    url, token, control_url = job.request["worker_url"], job.secrets.get("token"), job.request.get("control_url")
    async with ServerClient(url, token, control_url=control_url) as client:
        try:
            kept = await profile(client, plan, load, job.tell, run_id=job.request.get("run_id"))
        except asyncio.CancelledError:
            return Outcome("cancelled", Cancelled("The profile was stopped.", "Nothing was kept.").as_dict())
    return Outcome("done", result=answer(kept))


def answer(kept: Sequence[KeptTrace]) -> dict[str, Any]:
    """What a profile gave, as JSON."""
    return {"traces": [each.id for each in kept], "summary": kept[0].summary.model_dump(mode="json")}


async def profile(
    client: ServerClient,
    plan: ProfilePlan,
    load: ProfileLoad | None,
    tell: Tell,
    *,
    run_id: str | None = None,
    timeout_s: float = 300.0,
) -> tuple[KeptTrace, ...]:
    """Record one worker and keep the traces, one a repeat.

    Raises InputError for a worker that cannot be recorded or a load that does not fit it, Busy while it is measured
    or recorded already, and what went wrong with the load's requests.
    """
    state = await client.state()
    recipe = Recipe.from_dict(state["recipe"])
    require_traceable(recipe)
    _drop_left_over()
    raws = await _record(client, plan, load, tell, state, timeout_s)
    tell("read", None, "Reading the trace.")
    about = _about(state, recipe, plan, load) | {"run_id": run_id}
    return tuple([await asyncio.to_thread(_keep, raw, about, number) for number, raw in enumerate(raws)])


async def _record(
    client: ServerClient,
    plan: ProfilePlan,
    load: ProfileLoad | None,
    tell: Tell,
    state: dict[str, Any],
    timeout_s: float,
) -> list[RawTrace]:
    body = plan.model_dump(mode="json") | {"timeout_s": timeout_s}
    async with contextlib.AsyncExitStack() as entered:
        sender: _Sender | None = None
        if load is not None:
            sender = _Sender(client, load, state, plan.total_steps)
            await entered.enter_async_context(_held(client))
        recording = asyncio.create_task(client.control("POST", "profile", body, timeout_s=timeout_s + _WRITING_S))
        traces: list[RawTrace] | None = None
        try:
            async with sender.sending() if sender else contextlib.nullcontext():
                await _follow(recording, sender, plan, tell)
            traces = [RawTrace.model_validate(each) for each in recording.result()["traces"]]
        finally:
            if traces is None:
                await _stop(client, recording)
    return traces


async def _follow(
    recording: asyncio.Task[dict[str, Any]], sender: _Sender | None, plan: ProfilePlan, tell: Tell
) -> None:
    """Until the recording has ended. Raises what ended the load before."""
    waiting = "" if sender else " Send requests to the worker meanwhile."
    while not recording.done():
        fraction = min(1.0, sender.steps / plan.total_steps) if sender else None
        tell("record", fraction, f"Recording {plan.total_steps} steps.{waiting}")
        await asyncio.wait((recording,), timeout=_LOOK_S)
        if sender is not None and sender.failure is not None and not recording.done():
            raise error_from(sender.failure.model_dump())
    recording.result()


async def _stop(client: ServerClient, recording: asyncio.Task[dict[str, Any]]) -> None:
    """The worker records no more; what it wrote is deleted."""
    with contextlib.suppress(McpError):
        await client.post_control("stop-profile")
    await asyncio.wait((recording,), timeout=_STOP_S)
    if not recording.done():
        recording.cancel()
    elif not recording.cancelled() and recording.exception() is None:
        _delete(recording.result()["traces"])


def _drop_left_over() -> None:
    """Raw traces whose job was killed before it could read them."""
    for path in paths.home("profiles").glob("raw-*.json"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                path.unlink()


def _delete(traces: Sequence[dict[str, Any]]) -> None:
    for each in traces:
        Path(each["path"]).unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _held(client: ServerClient) -> AsyncIterator[None]:
    """Nobody changes or measures the worker meanwhile. Raises Busy."""
    await client.post_control("hold", {"purpose": "recording a profile", "pid": os.getpid()})
    try:
        yield
    finally:
        with contextlib.suppress(McpError):
            await client.post_control("release")


class _Sender:
    """Clients that ask again and again. ``failure`` is what ended one of them. Raises InputError for a load that
    does not fit the worker's context."""

    def __init__(self, client: ServerClient, load: ProfileLoad, state: dict[str, Any], steps: int) -> None:
        longest = load.prompt_tokens + load.output_tokens
        if longest > int(state["max_context"]):
            raise InputError(
                f"A request of the load has {longest} tokens; the context holds {state['max_context']}.",
                "Ask for a shorter prompt or reply.",
            )
        self.failure: Failure | None = None
        self._client = client
        self._load = load
        self._model: str = state["model"]
        self._chunks = 0
        workload = Workload(
            requests=max(1, steps),
            prompt_tokens=Lengths(min=load.prompt_tokens, max=load.prompt_tokens),
            output_tokens=Lengths(min=load.output_tokens, max=load.output_tokens),
        )
        self._prompt = token_prompts(workload, int(state["vocab_size"]), state["special_ids"])
        self._asked = 0

    @property
    def steps(self) -> float:
        """About how many steps the engine has done: each gives every client a token."""
        return self._chunks / self._load.concurrency

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Clients ask while the block lasts."""
        clients = [asyncio.create_task(self._ask_forever()) for _ in range(self._load.concurrency)]
        try:
            yield
        finally:
            for each in clients:
                each.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _ask_forever(self) -> None:
        while self.failure is None:
            self._asked += 1
            body = request_body(self._prompt(self._asked), self._model)
            try:
                async for chunk in self._client.stream("/v1/completions", body):
                    self._chunks += chunk.has_token
                    self.failure = chunk.error or self.failure
            except McpError as error:
                self.failure = Failure.of(error)


def _about(state: dict[str, Any], recipe: Recipe, plan: ProfilePlan, load: ProfileLoad | None) -> dict[str, Any]:
    effective = state["effective"]
    scheme = "" if effective["scheme"] == "none" else f", {effective['scheme']}"
    return {
        "trace_id": new_run_id(),
        "created": now().isoformat(),
        "title": f"{state['title']}, {effective['dtype']}{scheme}, batching {effective['batching_mode']}",
        "engine": recipe.engine,
        "device": effective["device"],
        "recipe_fingerprint": recipe.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "load": load.model_dump(mode="json") if load else None,
        "random_weights": state.get("random_weights", False),
    }


def _keep(raw: RawTrace, about: dict[str, Any], number: int) -> KeptTrace:
    """Read, named and stored; the raw file is deleted, also one that cannot be read."""
    path = Path(raw.path)
    if not path.exists():
        raise InputError(
            f"The worker wrote its trace to {path}, which is not on this machine.", "Profile it where it runs."
        )
    if number:
        about = about | {"trace_id": f"{about['trace_id']}-{number + 1}"}
    try:
        with uncollected():
            document = finished(read_trace(path), raw.steps, about)
            return keep(document, summarize(document))
    finally:
        path.unlink(missing_ok=True)
