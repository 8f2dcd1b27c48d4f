"""RunRecorder: the machine and the measured worker, once a second, while a load runs.

It asks the worker for its counters over HTTP, one small request a second, and reads the machine in a thread, so
that the load generator's loop is not held up. This file does not know what is measured meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pynvml

from mcp_core.errors import McpError
from mcp_core.monitoring.history import History
from mcp_core.monitoring.nvml import throttle_names
from mcp_core.monitoring.run_telemetry import WORKER, RunTelemetry, Values
from mcp_core.monitoring.sample import ProcessProbe, Sample, WorkerProbe
from mcp_core.monitoring.series import device_scope, readings_of
from mcp_core.monitoring.taker import Taker
from mcp_core.serving.client import ServerClient

__all__ = ["RunRecorder"]

# A Run of more seconds is kept in rows of ten, then of a minute: no chart shows more.
MOST_POINTS = 600


class RunRecorder:
    """``async with`` around the load; ``telemetry`` after it. ``pid`` None: a server that is not ours to look into.

    ``asks`` false leaves the server alone: only this machine is sampled. ``cores`` are those that count for others'
    load: what this process could use before it was pinned.
    """

    def __init__(
        self,
        client: ServerClient,
        pid: int | None,
        title: str,
        *,
        asks: bool,
        cores: frozenset[int] | None = None,
        interval_s: float = 1.0,
        nvml: Any = pynvml,
    ) -> None:
        self._client = client
        self._pid = pid
        self._title = title
        self._asks = asks
        self._interval_s = interval_s
        self._taker = Taker(nvml, cores)
        self._history = History()
        self._reasons: dict[str, dict[str, None]] = {}
        self._began_s = self._ended_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._began_s = time.time()
        await asyncio.to_thread(self._taker.open)
        await self._sample()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self._sample()  # what was counted since the last one belongs to the Run, too
        self._ended_s = time.time()
        self._taker.close()

    @property
    def telemetry(self) -> RunTelemetry:
        """What was recorded."""
        window = self._history.window(self._began_s, self._ended_s, MOST_POINTS)
        return RunTelemetry(
            began=datetime.fromtimestamp(self._began_s, UTC),
            interval_s=window.span_s,
            at_s=tuple(round(row.at_s - self._began_s, 3) for row in window.rows),
            gauges=_measured({name: window.mean(name) for name in window.gauges}),
            counters=_measured({name: window.added(name) for name in window.counters}),
            labels=window.labels,
            throttle_reasons={scope: tuple(names) for scope, names in self._reasons.items()},
        )

    async def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + self._interval_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            await self._sample()

    async def _sample(self) -> None:
        probes = (await self._probe(),) if self._asks else ()
        sample = await asyncio.to_thread(self._taker.take, probes, (ProcessProbe(os.getpid(), "load generator"),))
        self._note_reasons(sample)
        self._history.add(sample.at_s, readings_of(sample))

    async def _probe(self) -> WorkerProbe:
        try:
            look = await self._client.look()
        except McpError:  # it has died, which the load finds out by itself
            return WorkerProbe(WORKER, self._pid, self._title, None)
        return WorkerProbe(WORKER, self._pid, self._title, look.stats, time.monotonic(), look.latency)

    def _note_reasons(self, sample: Sample) -> None:
        for device in sample.devices:
            seen = self._reasons.setdefault(device_scope(device.index), {})
            seen.update(dict.fromkeys(name for name in throttle_names(device.throttle_reasons) if name != "idle"))


def _measured(series: dict[str, list[tuple[float, float | None]]]) -> dict[str, Values]:
    """Without those that nothing measured; rounded to what a verdict can tell apart."""
    rounded = {
        name: tuple(None if value is None else float(f"{value:.7g}") for _, value in points)
        for name, points in series.items()
    }
    return {name: values for name, values in rounded.items() if any(value is not None for value in values)}
