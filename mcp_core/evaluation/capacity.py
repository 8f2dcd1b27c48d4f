"""Capacity: the largest load that was measured to meet every limit, found by doubling, then halving the gap.

Every point is a Run of its own with new prompts, and nothing is said about a load that was not measured. This file
does not know how a Run is measured or kept (both are handed in), or who asks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.errors import InputError, WorkloadError, error_from
from mcp_core.evaluation.attainment import attain, limit_words
from mcp_core.evaluation.metrics import MIN_REQUESTS_P95, MIN_REQUESTS_P99
from mcp_core.evaluation.saturation import LEAST_REQUESTS
from mcp_core.goal import Slo
from mcp_core.results import Measurement, RequestRecord, Run
from mcp_core.views import Progress
from mcp_core.workload import LoadKind, Workload

__all__ = ["Capacity", "CapacityPoint", "MeasureLoad", "measure_capacity", "requests_for", "require_searchable"]

# Measures a workload; the Run and its requests. A Run that did not come about says why by its status.
MeasureLoad = Callable[[Workload], Awaitable[tuple[Run, Sequence[RequestRecord]]]]

# Two loads this near are one: the capacity lies between them.
RESOLUTION = 0.05
# So often each client of a closed loop asks at least, or its first round, in step, is all that is seen.
ROUNDS = 4
# With as many to spare as may fail: percentiles are of those that completed.
_SPARE = 1.05
_LEAST_REQUESTS = {"p95": round(_SPARE * MIN_REQUESTS_P95), "p99": round(_SPARE * MIN_REQUESTS_P99)}
# Of an open load, fewer cannot show that the queue grows: a median of 16 that come at once holds at any rate.
_LEAST_OPEN = math.ceil(_SPARE * LEAST_REQUESTS)
# Below so small a part of the first rate nothing is looked for.
_LEAST_SHARE = 1 / 256
_MOST_CLIENTS = 4096
_MOST_RATE_S = 100_000.0


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CapacityPoint(_Value):
    """One load that was measured."""

    load: float = Field(description="Clients, or arrivals a second.")
    run_id: str
    meets: bool = Field(description="Whether every limit held.")
    attainment: float | None = Field(
        default=None, description="Share of requests that met every latency limit, 0..1."
    )
    goodput_s: float | None = Field(default=None, description="Requests a second that did.")
    broken: tuple[str, ...] = Field(default=(), description='Limits that did not hold, as "p95 TTFT 812 > 500 ms".')


class Capacity(_Value):
    """What was found. The capacity itself lies from ``best`` to below ``broken_at``; both were measured."""

    kind: LoadKind = Field(description="What loads are counted in: concurrency or rate_s.")
    points: tuple[CapacityPoint, ...] = Field(description="In the order in which they were measured.")
    best: float | None = Field(description="Largest load that met every limit; null: none that was measured did.")
    broken_at: float | None = Field(description="Smallest load above it that did not; null: none was reached.")
    ended: Literal["found", "budget", "cancelled", "range", "failed"] = Field(
        description="found: both sides are measured and near. range: no load that could be asked for was on the "
        "other side. failed: the server was gone."
    )
    seconds: float = Field(description="What it took, s.")
    cut: float | None = Field(
        default=None, description="Load that was still being measured when the time was up; it is not judged."
    )
    limits: tuple[str, ...] = Field(
        default=(),
        description='What every load had to meet, as "p95 TTFT ≤ 500 ms"; empty: written by an older MCP.',
    )

    @property
    def in_words(self) -> str:
        """As "8 users meet every limit, 9 do not"."""
        if not self.points:
            return "No load was measured to its end."
        if self.best is None:
            least = min(point.load for point in self.points)
            return f"No load that was measured meets every limit, down to {self._words(least)}."
        above = "nothing above was measured" if self.broken_at is None else f"{self.broken_at:.4g} do not"
        return f"{self._words(self.best)} meet{'s' if self._is_one(self.best) else ''} every limit, {above}."

    @property
    def ended_in_words(self) -> str:
        """Why no further load was measured; empty where both sides were found."""
        if self.ended == "budget":
            was_cut = "" if self.cut is None else f" before a load of {self._words(self.cut)} was measured"
            if self.best is None and self.broken_at is None:
                return f"The time was up{was_cut}. Allow more, or ask for fewer requests."
            side = "below" if self.best is None else "above"
            known = self.best is not None and self.broken_at is not None
            lies = "between the two" if known else f"{side} what was measured"
            return f"The time was up{was_cut}: the capacity lies {lies}."
        if self.ended == "range":
            return "There is no smaller load to try." if self.best is None else "There is no larger load to try."
        return {"failed": "The server was gone.", "cancelled": "It was stopped; its points are kept."}.get(
            self.ended, ""
        )

    def _is_one(self, load: float) -> bool:
        return self.kind == "concurrency" and load == 1

    def _words(self, load: float) -> str:
        if self.kind == "rate_s":
            return f"{load:.4g} requests/s"
        return f"{load:g} user{'' if self._is_one(load) else 's'}"


def requests_for(slo: Slo, workload: Workload) -> int:
    """Requests that a point needs: enough for each percentile that is limited, and some rounds of every client, or
    to see a queue grow."""
    judged = max((_LEAST_REQUESTS.get(limit.statistic, 0) for limit in slo.limits()), default=0)
    return max(workload.requests, judged, _LEAST_OPEN if workload.is_open else ROUNDS * workload.concurrency)


def require_searchable(workload: Workload, slo: Slo) -> None:
    """Raises InputError where there is no limit, WorkloadError for a ramp or replay: known before a model is
    loaded."""
    if not slo.limits():
        raise InputError(
            "There is no latency limit, so no load breaks one.", 'As: {"slo": {"ttft_ms": {"p95": 500}}}.'
        )
    if workload.load is None:
        workload.at_load(1)  # says why not


async def measure_capacity(
    measure: MeasureLoad,
    workload: Workload,
    slo: Slo,
    *,
    failures_max: float = 0.01,
    most: float | None = None,
    budget_s: float | None = None,
    cuts: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Capacity:
    """Find it from the workload's own load on: double until a limit breaks (or halve until none does), then halve
    the gap until its ends are 5 % apart or neighbours. ``most`` is the largest load to try (of clients a whole
    number, rounded down); no point is begun that would, by what the last one took, end after ``budget_s``. The
    first is measured whatever it takes, unless the budget ``cuts`` a point that is still going.

    Cancelling the task keeps what was measured. Raises InputError where there is no limit, WorkloadError for a ramp
    or replay and where a point has too few requests to judge by, and the error of a Run that was refused.
    """
    require_searchable(workload, slo)
    first = workload.load
    most = most or (_MOST_RATE_S if workload.is_open else _MOST_CLIENTS)
    search = _Search(measure, workload, slo, failures_max, budget_s, cuts, on_progress)
    return await search.run(first or 1, most if workload.is_open else math.floor(most))


class _Search:
    """One search while it goes on: ``good`` is the largest load that met the limits, ``bad`` the smallest above."""

    def __init__(
        self,
        measure: MeasureLoad,
        workload: Workload,
        slo: Slo,
        failures_max: float,
        budget_s: float | None,
        cuts: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._measure = measure
        self._workload = workload
        self._slo = slo
        self._failures_max = failures_max
        self._budget_s = budget_s
        self._cuts = cuts
        self._cut: float | None = None
        self._on_progress = on_progress
        self._points: list[CapacityPoint] = []
        self._good: float | None = None
        self._bad: float | None = None
        self._gone = False
        self._cancelled = False
        self._begun_s = time.monotonic()
        self._last_s = 0.0

    async def run(self, first: float, most: float) -> Capacity:
        least = 1.0 if self._workload.load_kind == "concurrency" else first * _LEAST_SHARE
        ended: Literal["found", "budget", "cancelled", "range", "failed"] = "found"
        load: float | None = min(first, most)
        while load is not None:
            if self._points and self._out_of_time():
                ended = "budget"
                break
            await self._point(load)
            if self._cut is not None:
                ended = "budget"
                break
            if self._cancelled or self._gone:
                ended = "cancelled" if self._cancelled else "failed"
                break
            load = self._next(least, most)
        else:
            ended = "found" if self._good is not None and self._bad is not None else "range"
        return Capacity(
            kind=self._workload.load_kind,
            points=tuple(self._points),
            best=self._good,
            broken_at=self._bad,
            ended=ended,
            seconds=time.monotonic() - self._begun_s,
            cut=self._cut,
            limits=self._limits(),
        )

    def _limits(self) -> tuple[str, ...]:
        return (*map(limit_words, self._slo.limits()), f"failed requests ≤ {100 * self._failures_max:.3g} %")

    def _next(self, least: float, most: float) -> float | None:
        good, bad = self._good, self._bad
        whole = self._workload.load_kind == "concurrency"
        if bad is None:
            assert good is not None
            return min(2 * good, most) if good < most else None
        if good is None:
            half = max(least, float(bad // 2) if whole else bad / 2)
            return half if half < bad else None
        if bad - good <= RESOLUTION * good or (whole and bad - good <= 1):
            return None
        return float(math.floor((good + bad) / 2)) if whole else (good + bad) / 2

    def _out_of_time(self) -> bool:
        spent_s = time.monotonic() - self._begun_s
        return self._budget_s is not None and spent_s + self._last_s > self._budget_s

    async def _point(self, load: float) -> None:
        at_load = self._workload.at_load(load)
        repeat = self._workload.repeat + len(self._points)
        asked = at_load.replace({"requests": requests_for(self._slo, at_load), "repeat": repeat})
        self._report(load)
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s()) as time_up:
                run, records = await self._measure(asked)
        except TimeoutError:
            self._cut = load
            return
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            self._cancelled = True
            return
        self._last_s = time.monotonic() - begun_s
        if time_up.expired() and run.status == "cancelled":  # what was measured until then is kept as that Run
            self._cut = load
        else:
            self._take(load, run, records)

    def _left_s(self) -> float | None:
        """How long a point may take; None: as long as it does."""
        if not self._cuts or self._budget_s is None:
            return None
        return max(0.0, self._budget_s - (time.monotonic() - self._begun_s))

    def _take(self, load: float, run: Run, records: Sequence[RequestRecord]) -> None:
        if run.status in ("cancelled", "interrupted"):
            self._cancelled = True
            return
        if run.status == "refused" and run.failure is not None and run.failure.kind != "queue":
            raise error_from(run.failure.model_dump())
        point = self._judged(load, run, records)
        self._points.append(point)
        self._gone = run.failure is not None and run.failure.kind == "worker"
        if point.meets:
            self._good = max(load, self._good or 0)
        elif self._bad is None or load < self._bad:
            self._bad = load

    def _judged(self, load: float, run: Run, records: Sequence[RequestRecord]) -> CapacityPoint:
        measured = run.measurement
        if run.failure is not None or measured is None:
            why = run.failure.message if run.failure else "Nothing was measured."
            return CapacityPoint(load=load, run_id=run.id, meets=False, broken=(why,))
        found = attain(self._slo, measured, records)
        broken = [each.text for each in found.broken] + self._more_broken(measured)
        if broken and all(each.figure is None for each in found.broken) and len(broken) == len(found.broken):
            raise WorkloadError(
                f"At a load of {load:g}: {found.broken[0].text}.", "Raise requests or duration_s in the Workload."
            )
        return CapacityPoint(
            load=load,
            run_id=run.id,
            meets=not broken,
            attainment=found.attainment,
            goodput_s=found.goodput_s,
            broken=tuple(broken),
        )

    def _more_broken(self, measured: Measurement) -> list[str]:
        """What breaks a load beside latencies."""
        ended = measured.completed + measured.failed
        share = measured.failed / ended if ended else 0.0
        failed = (
            [f"{share:.1%} of requests failed > {self._failures_max:.1%}"] if share > self._failures_max else []
        )
        return failed + (["the queue grew all the while"] if measured.over_saturated else [])

    def _report(self, load: float) -> None:
        if self._on_progress is None:
            return
        left, done = self._points_left(), len(self._points)
        remaining_s = left * self._last_s if left is not None and self._last_s else None
        spent_s = time.monotonic() - self._begun_s
        if self._budget_s is not None:
            remaining_s = min(remaining_s or math.inf, max(0.0, self._budget_s - spent_s))
        message = f"point {done + 1}: {self._workload.at_load(load).load_words}"
        fraction = None if left is None else done / (done + left)
        self._on_progress(Progress("capacity", fraction, message, spent_s, remaining_s))

    def _points_left(self) -> int | None:
        """Points until the ends are near, this one included; None while one end is not known."""
        if self._good is None or self._bad is None:
            return None
        near = max(RESOLUTION * self._good, 1.0 if self._workload.load_kind == "concurrency" else 0.0)
        return max(1, math.ceil(math.log2((self._bad - self._good) / near)))
