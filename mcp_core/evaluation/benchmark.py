"""Benchmark: one Workload against one running server becomes one Run, whatever happens on the way.

This file does not start servers or know who holds the device (both are handed in), and it does not store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from mcp_core import __version__
from mcp_core.engines import FOREIGN
from mcp_core.errors import (
    Busy,
    Cancelled,
    DiskFull,
    DoesNotFit,
    FidelityLost,
    InputError,
    McpError,
    RequestRejected,
    WorkloadError,
    error_from,
)
from mcp_core.evaluation.comparability import OTHERS_USED, incomparable_load, incomparable_requests
from mcp_core.evaluation.conditions import conditions, incomparable
from mcp_core.evaluation.cores import OthersLoad, pinned, usable_cores
from mcp_core.evaluation.loadgen import LoadResult, OnProgress, run_load, run_warmup
from mcp_core.evaluation.metrics import output_tokens, summarize
from mcp_core.evaluation.prompts import Prompts, Vocabulary, prompts_of
from mcp_core.evaluation.run_recorder import RunRecorder
from mcp_core.evaluation.saturation import over_saturation
from mcp_core.generation import EngineStats
from mcp_core.hardware import Hardware
from mcp_core.memory_readings import MemoryTimeline
from mcp_core.monitoring.nvml import read_devices
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.recipe import Recipe
from mcp_core.results import (
    Comparable,
    Effective,
    EngineWork,
    Failure,
    Measurement,
    Memory,
    Prediction,
    RequestRecord,
    Run,
    RunStatus,
    new_run_id,
    now,
)
from mcp_core.serving.client import ServerClient, open_session
from mcp_core.workload import Workload

__all__ = ["Keep", "engine_work", "measure", "unmeasured"]

# Takes a Run, its request records and its telemetry as a JSON document; ``Store.add`` is one.
Keep = Callable[[Run, Sequence[RequestRecord], Any], None]

MAX_OTHERS_LOAD = 0.5
# Of loading and of serving, each.
_TIMELINE_POINTS = 60
# The request was understood and turned down before anything was tried.
_REFUSALS = (InputError, DoesNotFit, FidelityLost, DiskFull, Busy)


async def measure(
    worker_url: str,
    token: str | None,
    recipe: Recipe,
    workload: Workload,
    hardware: Hardware,
    *,
    on_progress: OnProgress | None = None,
    keep: Keep | None = None,
    lease: AbstractContextManager[object] | None = None,
    control_url: str | None = None,
    vocabulary: Vocabulary | None = None,
) -> Run:
    """Measure a running server. A Recipe whose model is an endpoint means one of someone else's, without control
    routes; ``vocabulary`` is what is known of its model's. ``control_url`` is where those are answered, if not at
    ``worker_url``.

    Never raises for a failed measurement: the Run says so. Cancelling the task gives a Run of status cancelled
    with what was measured until then. ``lease`` is held meanwhile; ``keep`` is called once, at the end, and
    what it raises is raised.
    """
    async with open_session() as session:
        client = ServerClient(worker_url, token, session, control_url)
        bench = _Benchmark(client, recipe, workload, hardware, on_progress, vocabulary)
        with lease or nullcontext():
            run = await bench.run()
    if keep is not None:
        keep(run, bench.records, bench.telemetry)
    return run


def unmeasured(recipe: Recipe, workload: Workload, hardware: Hardware, error: McpError) -> Run:
    """The Run of a Recipe that did not come to be measured: refused, cancelled or failed, by the error."""
    return _run(recipe, workload, hardware, status=_status(error), failure=Failure.of(error))


@dataclass(slots=True)
class _Findings:
    """What is known so far; a Run can be made of it at any moment."""

    recipe: Recipe
    effective: Effective | None = None
    memory: Memory | None = None
    load_s: float | None = None
    load: LoadResult | None = None
    before: EngineStats | None = None
    after: EngineStats | None = None
    energy_j: float | None = None
    predicted: Prediction | None = None
    timeline: MemoryTimeline | None = None
    telemetry: RunTelemetry | None = None
    reasons: list[str] = field(default_factory=list)
    others_cores: float | None = None


@dataclass(frozen=True, slots=True)
class _Server:
    """What has to be known of a server to send it a workload. ``pid`` None: its processes are not known here."""

    model: str
    prompts: Prompts
    pid: int | None
    pinned: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True


class _Benchmark:
    """One measurement from the first look at the server to its Run."""

    def __init__(
        self,
        client: ServerClient,
        recipe: Recipe,
        workload: Workload,
        hardware: Hardware,
        on_progress: OnProgress | None,
        vocabulary: Vocabulary | None,
    ) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._workload = workload
        self._hardware = hardware
        self._on_progress = on_progress
        self._ours = recipe.model.source != "endpoint"
        self._found = _Findings(recipe)
        self._cores_before = usable_cores()  # before this process is pinned to some of them

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        return self._found.load.records if self._found.load else ()

    @property
    def telemetry(self) -> dict[str, Any] | None:
        found = self._found.telemetry
        return found.model_dump(mode="json") if found else None

    async def run(self) -> Run:
        try:
            await self._measure()
            return self._result()
        except McpError as error:
            return self._result(error)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            return self._result(_stopped())

    async def _measure(self) -> None:
        server = await self._look()
        if server.prompts.note:
            self._found.reasons.append(server.prompts.note)
        async with self._held():
            with self._cores(server):
                await self._warm_up(server)
                await self._begin_counting()
                await self._load(server)
            await self._end_counting()

    async def _look(self) -> _Server:
        """Ask the server what it is. Raises WorkloadError when the workload does not fit its context."""
        models = await self._client.models()
        if not models:
            raise McpError(f"{self._client.url} serves no model.", "Load one, or check the URL.")
        if not self._ours:
            return _Server(models[0], prompts_of(self._workload, self._vocabulary), None, exact=False)
        state = await self._client.state()
        self._read_state(state)
        self._require_context(int(state["max_context"]))
        vocabulary = Vocabulary(int(state["vocab_size"]), state["special_ids"])
        prompts, pid = prompts_of(self._workload, vocabulary), int(state["pid"])
        if self._found.recipe.engine in FOREIGN:
            # It sends ids only when asked, and its processes are not pinned: the device does the work.
            return _Server(models[0], prompts, pid, pinned=False, extra={"return_token_ids": True})
        return _Server(models[0], prompts, pid)

    def _read_state(self, state: dict[str, Any]) -> None:
        found = self._found
        try:
            found.recipe = Recipe.from_dict(state["recipe"])
            found.effective = Effective.model_validate(state["effective"])
            found.memory = Memory.model_validate(state["memory"]) if state.get("memory") else None
        except (ValidationError, KeyError) as error:
            raise McpError(
                f"{self._client.url} describes itself in a form that is not understood.",
                "It may be a worker of another MCP version; load the model again.",
            ) from error
        found.load_s = state.get("load_s")

    def _require_context(self, max_context: int) -> None:
        longest = self._workload.longest_request
        if longest > max_context:
            raise WorkloadError(
                f"The workload's longest request has {longest} tokens; the context holds {max_context}.",
                "Shorten its prompt_tokens or output_tokens, or raise kv.max_context in the Recipe.",
            )

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Our worker refuses changes and other measurements meanwhile. Raises Busy when it is held already."""
        if not self._ours:
            yield
            return
        await self._client.post_control("hold", {"purpose": f"measuring {self._workload.name}", "pid": os.getpid()})
        try:
            yield
        finally:
            with contextlib.suppress(McpError):  # it may have died
                await self._client.post_control("release")

    @contextlib.contextmanager
    def _cores(self, server: _Server) -> Iterator[None]:
        """The worker on its cores and us on the rest, and what others used meanwhile; a foreign server's processes
        are left where they are, and of one elsewhere nothing is known."""
        if server.pid is None or self._found.effective is None:
            yield
            return
        others = OthersLoad((server.pid, os.getpid()))
        with pinned(server.pid, self._found.effective.threads) if server.pinned else nullcontext() as not_pinned:
            yield
        if not_pinned:
            self._found.reasons.append(not_pinned)
        load = others.read()
        if load is not None and load > MAX_OTHERS_LOAD:
            self._found.reasons.append(f"noisy: {OTHERS_USED} {load:.1f} cores meanwhile")
        else:
            self._found.others_cores = load

    async def _warm_up(self, server: _Server) -> None:
        if not self._workload.warmup_requests:
            return
        warm = await run_warmup(
            self._client,
            self._workload,
            server.prompts,
            model=server.model,
            on_progress=self._on_progress,
            extra=server.extra,
            exact=server.exact,
        )
        if warm.cancelled:
            raise _stopped()
        _require_answers(warm)

    async def _load(self, server: _Server) -> None:
        recorder = RunRecorder(self._client, server.pid, server.model, asks=self._ours, cores=self._cores_before)
        async with recorder:
            await self._send(server)
        self._found.telemetry = recorder.telemetry
        assert self._found.load is not None
        _require_answers(self._found.load)

    async def _send(self, server: _Server) -> None:
        with self._energy():
            self._found.load = await run_load(
                self._client,
                self._workload,
                server.prompts,
                model=server.model,
                on_progress=self._on_progress,
                extra=server.extra,
                exact=server.exact,
            )

    async def _begin_counting(self) -> None:
        if self._ours:
            await self._client.reset_peaks()
            self._found.before, _ = await self._client.stats_and_memory()

    async def _end_counting(self) -> None:
        if self._ours:
            self._found.after, memory = await self._client.stats_and_memory()
            self._found.memory = memory or self._found.memory
            with contextlib.suppress(RequestRejected):  # a worker of an older version has no such routes
                self._found.predicted = await self._client.prediction(self._workload)
                self._found.timeline = (await self._client.memory_analysis(_TIMELINE_POINTS)).timeline

    @contextlib.contextmanager
    def _energy(self) -> Iterator[None]:
        effective = self._found.effective
        device = self._hardware.device(effective.device) if effective else None
        if device is None or device.kind != "cuda":
            yield
            return
        before_mj = _energy_mj(device.uuid)
        yield
        after_mj = _energy_mj(device.uuid)
        if before_mj is not None and after_mj is not None:
            self._found.energy_j = (after_mj - before_mj) / 1e3

    def _result(self, error: McpError | None = None) -> Run:
        found = self._found
        if error is None and found.load is not None and found.load.cancelled:
            error = _stopped()
        over_saturated = over_saturation(self.records) is not None if self._workload.is_open else None
        measurement = _measurement(found, over_saturated)
        meanwhile = conditions(found.telemetry, self._hardware, found.effective)
        work = engine_work(found.before, found.after)
        reasons = [*found.reasons, *incomparable_load(found.recipe, self._workload)]
        if measurement is not None:
            cached = work.cached_prompt_tokens if work else None
            reasons += incomparable_requests(measurement, self.records, self._workload, cached, found.others_cores)
        reasons += incomparable(meanwhile)
        return _run(
            found.recipe,
            self._workload,
            self._hardware,
            status=_status(error) if error else "ok",
            failure=Failure.of(error) if error else None,
            effective=found.effective,
            measurement=measurement,
            memory=found.memory,
            load_s=found.load_s,
            predicted=found.predicted,
            timeline=found.timeline,
            engine_work=work,
            conditions=meanwhile,
            energy_j_per_token=_energy_per_token(found.energy_j, measurement),
            comparable=Comparable(ok=not reasons, reasons=tuple(reasons)),
        )


def _run(recipe: Recipe, workload: Workload, hardware: Hardware, **rest: Any) -> Run:
    """A Run as of now, with this machine's library versions."""
    versions = {"mcp-core": __version__, "python": hardware.python, **hardware.libraries}
    return Run(
        id=new_run_id(),
        created=now(),
        recipe=recipe,
        workload=workload,
        hardware=hardware,
        versions=versions,
        evidence=f"measured on {recipe.engine}",
        **rest,
    )


def _status(error: McpError) -> RunStatus:
    if isinstance(error, Cancelled):
        return "cancelled"
    return "refused" if isinstance(error, _REFUSALS) else "failed"


def _stopped() -> Cancelled:
    return Cancelled("The measurement was stopped.", "What was measured until then is kept.")


def _require_answers(load: LoadResult) -> None:
    """Raise the server's death, and the first request's error when not one request completed."""
    if load.death is not None:
        raise error_from(load.death.model_dump())
    if load.cancelled or any(record.status == "ok" for record in load.records):
        return
    error = error_from(next(each.failure for each in load.records if each.failure is not None).model_dump())
    raise type(error)(f"No request was answered. The first: {error.message}", error.hint) from error


def _measurement(found: _Findings, over_saturated: bool | None) -> Measurement | None:
    if found.load is None:
        return None
    return summarize(
        found.load.records,
        found.load.duration_s,
        engine_output_tok_s=_engine_output_tok_s(found.before, found.after),
        engine_tpot_ms=_engine_tpot_ms(found.load.records),
        client_lag_p99_ms=found.load.lag_p99_ms,
        over_saturated=over_saturated,
    )


def _engine_output_tok_s(before: EngineStats | None, after: EngineStats | None) -> float | None:
    if before is None or after is None:
        return None
    busy_s = after.prefill_s_total - before.prefill_s_total + after.decode_s_total - before.decode_s_total
    return (after.output_tokens_total - before.output_tokens_total) / busy_s if busy_s > 0 else None


def engine_work(before: EngineStats | None, after: EngineStats | None) -> EngineWork | None:
    """What was counted from one look at the engine to the next; None for a server without counters."""
    if before is None or after is None:
        return None
    return EngineWork(
        prefill_s=after.prefill_s_total - before.prefill_s_total,
        decode_s=after.decode_s_total - before.decode_s_total,
        decode_steps=after.decode_steps_total - before.decode_steps_total,
        prompt_tokens=after.prompt_tokens_total - before.prompt_tokens_total,
        output_tokens=after.output_tokens_total - before.output_tokens_total,
        cached_prompt_tokens=after.cached_prompt_tokens_total - before.cached_prompt_tokens_total,
        kv_evictions=after.kv_evictions_total - before.kv_evictions_total,
        preemptions=after.preemptions_total - before.preemptions_total,
        kv_capacity_tokens=after.kv_capacity_tokens,
    )


def _engine_tpot_ms(records: Sequence[RequestRecord]) -> float | None:
    """Median over completed requests of decode time / (tokens - 1), as the server's own timing says."""
    values = [
        record.server_timing["decode_ms"] / (tokens - 1)
        for record in records
        if record.status == "ok" and record.server_timing and "decode_ms" in record.server_timing
        if (tokens := output_tokens(record) or 0) > 1
    ]
    return float(np.median(values)) if values else None


def _energy_mj(uuid: str | None) -> int | None:
    _, devices = read_devices()
    return next((device.energy_mj for device in devices if device.uuid == uuid), None)


def _energy_per_token(energy_j: float | None, measurement: Measurement | None) -> float | None:
    if energy_j is None or measurement is None or not measurement.output_tokens:
        return None
    return energy_j / measurement.output_tokens
