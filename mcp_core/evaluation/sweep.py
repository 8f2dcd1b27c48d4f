"""Sweep: the cells of a plan measured by racing, one worker at a time, every step written before the next begins.

Cells that one loaded worker can serve share it and are changed live; what is confirmed is started anew each time. A
cell that fails is a row with its reason. Killed or cancelled, it goes on where it stopped. This file does not know
how one Run is measured (``benchmark.py``), or which cells can run at all (``sweep_cells.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from mcp_core import conflicts
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord, CellState, SweepRecord, SweepRun
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Cancelled, McpError, WorkerDied, error_from
from mcp_core.evaluation.benchmark import measure, unmeasured
from mcp_core.evaluation.capacity import Capacity, measure_capacity
from mcp_core.evaluation.device_hold import held_devices
from mcp_core.evaluation.loadgen import OnProgress
from mcp_core.evaluation.sweep_ceilings import with_ceilings
from mcp_core.evaluation.sweep_fidelity import FidelityStage
from mcp_core.evaluation.sweep_ranking import Score, median_score, score
from mcp_core.evaluation.sweep_repeats import FIRST, Attempt, is_repeated, next_attempt
from mcp_core.goal import Goal
from mcp_core.hardware import Hardware
from mcp_core.job_child import JOB_COMMAND
from mcp_core.results import Failure, RequestRecord, Run
from mcp_core.serving.supervisor import WORKER_COMMAND, Supervisor, Worker
from mcp_core.sweep_plan import RACED, Cell, Stage, SweepPlan
from mcp_core.views import Progress
from mcp_core.workload import Workload

__all__ = ["Host", "race", "ranked"]

# stage, fraction of the stage, message
Tell = Callable[[str, float | None, str], None]
# How long a worker whose connection broke may take to be gone; s.
_ENDING_S = 5.0
_WORDS: dict[Stage, str] = {"probe": "probed", "measure": "measured", "confirm": "measured"}


@dataclass(frozen=True, slots=True)
class Host:
    """What a sweep runs on, and whom it tells. ``within`` are leases of a parent that holds the device already."""

    hardware: Hardware
    tell: Tell = lambda stage, fraction, message: None
    on_run: Callable[[Run], None] = lambda run: None
    within: Collection[str] = ()
    hub_token: str | None = None
    store_url: str | None = None
    command: Sequence[str] = WORKER_COMMAND
    job_command: Sequence[str] = JOB_COMMAND


async def race(store: Store, sweep_id: str, host: Host) -> SweepRecord:
    """Do what is left of a sweep that this process has begun or claimed; how it is then.

    Raises Cancelled when its task is cancelled, and StoreError; the sweep can be resumed after either. Any other
    error ends this process, after which the sweep is interrupted.
    """
    sweeps = Sweeps(store)
    record = _get(sweeps, sweep_id)
    try:
        devices = {conflicts.resolve(cell.recipe, host.hardware).device for cell in _alive(record)}
        async with held_devices(
            devices, f"sweep {record.plan.name}", host.within, lambda why: host.tell("wait", None, why)
        ) as leases:
            recipes = [cell.recipe for cell in _alive(record)]
            known = await with_ceilings(recipes, host.hardware, host.tell, host.job_command)
            await _Race(store, sweeps, record, replace(host, hardware=known), leases).run()
    except (asyncio.CancelledError, Cancelled):
        sweeps.end(sweep_id, "cancelled")
        raise Cancelled("The sweep was stopped.", "What was measured is kept; resume it to go on.") from None
    except McpError as error:
        with contextlib.suppress(McpError):  # it may be the store that cannot be used
            sweeps.end(sweep_id, "failed", str(error))
        raise
    sweeps.end(sweep_id, "done")
    return _get(sweeps, sweep_id)


def ranked(
    store: Store, record: SweepRecord, stage: Stage, runs: Mapping[str, Run] | None = None
) -> tuple[tuple[CellRecord, Score], ...]:
    """Cells with all their Runs of a stage, best first; those that cannot win are left out. ``runs`` are the
    record's, where they were read before."""
    starts = record.plan.starts if stage == "confirm" else 1
    found = []
    for cell in record.cells:
        ids = [cell.run_of(stage, start) for start in range(starts)]
        read = [None if run_id is None else runs.get(run_id) if runs else store.get(run_id) for run_id in ids]
        middle = median_score([_score(store, run, record.plan) for run in read])
        if middle is not None:
            found.append((cell, middle))
    return tuple(sorted(found, key=lambda pair: pair[1], reverse=True))


def _score(store: Store, run: Run | None, plan: SweepPlan) -> Score | None:
    if run is None:
        return None
    limited = plan.goal is not None and plan.goal.slo.limits()  # only limits are judged request by request
    return score(run, store.records(run.id) if limited else (), plan.goal)


class _Race:
    """The stages over the cells that are still in it."""

    def __init__(
        self, store: Store, sweeps: Sweeps, record: SweepRecord, host: Host, leases: Collection[str]
    ) -> None:
        self._store, self._sweeps, self._host = store, sweeps, host
        self._id, self._plan = record.id, record.plan
        self._leases = leases
        self._supervisor = Supervisor(host.command, within=leases)
        self._cells = {cell.position: cell for cell in record.plan.cells()}
        self._fidelity = FidelityStage(
            store, self._id, self._plan, host.hardware, host.hub_token, host.store_url, host.job_command
        )
        self._records: Sequence[RequestRecord] = ()
        self._telemetry: Any = None

    async def run(self) -> None:
        try:
            if self._plan.probe_s:
                await self._stage("probe", self._left())
            kept = await self._kept()
            await self._let_go(kept)
            await self._stage("measure", kept)
            await self._confirm()
        finally:
            await self._supervisor.close()

    def _left(self) -> list[Cell]:
        return [self._cells[cell.position] for cell in _alive(self._now())]

    def _now(self) -> SweepRecord:
        return _get(self._sweeps, self._id)

    async def _kept(self) -> list[Cell]:
        """Whom the probes leave in the race, neighbours by worker; all where there were none.

        Fidelity is judged from the fastest on: none is judged that could not be kept, and the next takes the place
        of one that is refused.
        """
        if self._plan.probe_s:
            order = [cell for cell, _ in ranked(self._store, self._now(), "probe")]
            most = self._plan.keep or len(order)
        else:
            order = list(_alive(self._now()))
            most = len(order)
        kept: list[int] = []
        for cell in order:
            if len(kept) < most and await self._goes_on(cell, _Place(len(kept), most)):
                kept.append(cell.position)
        return [self._cells[position] for position in sorted(kept)]

    async def _goes_on(self, cell: CellRecord, place: _Place) -> bool:
        """Whether its fidelity lets it; what had gone on before a kill keeps its place."""
        if not self._plan.judges_fidelity or cell.stage in ("measure", "confirm"):
            return True
        if cell.state in ("refused", "failed"):
            return False

        def tell(inside: float | None, message: str) -> None:
            self._host.tell("fidelity", place.fraction(inside or 0.0), f"{place}: {cell.name}: {message}".rstrip())

        refused_as = self._plan.workload_of("measure", self._cells[cell.position])
        return await self._fidelity.passes(cell, refused_as, tell)

    async def _let_go(self, kept: Sequence[Cell]) -> None:
        """The others have been probed, and that is all."""
        staying = {cell.position for cell in kept}
        for cell in _alive(self._now()):
            if cell.position not in staying:
                self._sweeps.set_cell(self._id, cell.position, "done", "probe")
                if self._plan.judges_fidelity:
                    await self._fidelity.share(cell)

    async def _stage(self, stage: Stage, cells: Sequence[Cell]) -> None:
        """Every cell that has no Run of the stage yet, those of one worker one after the other."""
        known = {cell.position: cell for cell in self._now().cells}
        todo = [cell for cell in cells if known[cell.position].run_of(stage) is None]
        done = len(cells) - len(todo)
        for _, group in groupby(todo, key=lambda cell: cell.load_key):
            worker: Worker | None = None
            for cell in group:
                worker = await self._step(stage, cell, worker, _Place(done, len(cells)))
                done += 1
            await self._end(worker)

    async def _confirm(self) -> None:
        """The best, in turn, each time freshly started: what one start has by chance the next has not."""
        best = [self._cells[cell.position] for cell, _ in ranked(self._store, self._now(), "measure")]
        best = best[: self._plan.confirm]
        steps = [(start, cell) for start in range(self._plan.starts) for cell in best]
        for index, (start, cell) in enumerate(steps):
            while attempt := next_attempt(self._store, self._now().cells[cell.position], start):
                place = _Place(index, len(steps), attempt.why)
                await self._end(await self._step("confirm", cell, None, place, attempt))

    async def _step(
        self, stage: Stage, cell: Cell, worker: Worker | None, place: _Place, attempt: Attempt = FIRST
    ) -> Worker | None:
        """One Run, stored; the worker, if it can serve another cell."""
        self._sweeps.set_cell(self._id, cell.position, "running", stage)
        workload = self._workload(stage, cell, attempt)
        self._records, self._telemetry = (), None

        def report(now: Progress) -> None:
            self._tell(stage, cell, place, now)

        try:
            worker = await self._worker_for(cell, worker, report)
            if stage == "measure" and self._plan.seeks_capacity:
                run = await self._search(worker, cell, workload, report)
            else:
                run = await self._measure(worker, cell, workload, report)
        except McpError as error:
            recipe = conflicts.resolve(cell.recipe, self._host.hardware)
            run = unmeasured(recipe, workload, self._host.hardware, error)
        if run.status == "cancelled":
            raise Cancelled("The sweep was stopped.")
        await self._keep(run, cell, stage, attempt)
        return worker if worker is not None and worker.status == "ready" else None

    async def _worker_for(self, cell: Cell, worker: Worker | None, report: OnProgress) -> Worker:
        """The loaded one changed live where it can be, else a new one. Raises what loading raises."""
        if worker is not None and worker.client is not None:
            with contextlib.suppress(McpError):
                await worker.client.set_recipe(cell.recipe)
                return worker
        await self._end(worker)
        return await self._supervisor.start(cell.recipe, hub_token=self._host.hub_token, on_progress=report)

    def _workload(self, stage: Stage, cell: Cell, attempt: Attempt) -> Workload:
        """The plan's; a capacity is confirmed at the load at which it was found."""
        workload = self._plan.workload_of(stage, cell, attempt.start, attempt.again)
        found = self._now().cells[cell.position].run_of("measure")
        measured = None if found is None else self._store.get(found)
        if (
            stage != "confirm"
            or not self._plan.seeks_capacity
            or measured is None
            or measured.workload.load is None
        ):
            return workload
        return workload.at_load(measured.workload.load)

    async def _search(self, worker: Worker, cell: Cell, workload: Workload, report: OnProgress) -> Run:
        """The Run at the largest load that meets the Goal's limits; all others are kept beside it."""
        taken: dict[str, tuple[Run, Sequence[RequestRecord], Any]] = {}
        goal = self._plan.goal or Goal()

        async def at(load: Workload) -> tuple[Run, Sequence[RequestRecord]]:
            run = await self._measure(worker, cell, load, report)
            if run.status != "cancelled":
                taken[run.id] = (run, self._records, self._telemetry)
                self._sweeps.link(self._id, cell.position, SweepRun(run.id, "measure", final=False))
                self._store.add(await self._complete(run, "measure"), self._records, self._telemetry)
            return run, self._records

        found = await measure_capacity(
            at,
            workload.replace({"duration_s": None}),
            goal.slo,
            failures_max=goal.failures_max,
            most=None if workload.is_open else cell.recipe.batching.max_requests,
            budget_s=self._plan.capacity_s,
            on_progress=report,
        )
        if found.ended == "cancelled" or not taken:
            raise Cancelled("The sweep was stopped.")
        run, self._records, self._telemetry = taken[_answer(found, list(taken))]
        return run

    async def _measure(self, worker: Worker, cell: Cell, workload: Workload, report: OnProgress) -> Run:
        assert worker.url is not None
        run = await measure(
            worker.url,
            worker.token,
            cell.recipe,
            workload,
            self._host.hardware,
            on_progress=report,
            keep=self._take,
            control_url=worker.control_url,
        )
        if run.failure is None or run.failure.kind != WorkerDied.kind:
            return run
        with contextlib.suppress(TimeoutError):  # how its process ended says more than a broken connection
            await asyncio.wait_for(self._supervisor.wait(worker.id), _ENDING_S)
        return run.model_copy(update={"failure": worker.failure or run.failure})

    def _take(self, _run: Run, records: Sequence[RequestRecord], telemetry: Any) -> None:
        self._records, self._telemetry = records, telemetry

    async def _keep(self, run: Run, cell: Cell, stage: Stage, attempt: Attempt) -> None:
        """Store the Run as the answer of this step, and what it means for the cell; or as one that is repeated."""
        run = await self._complete(run, stage)
        repeated = stage == "confirm" and is_repeated(run, attempt)
        self._sweeps.link(self._id, cell.position, SweepRun(run.id, stage, attempt.start, final=not repeated))
        self._store.add(run, self._records, self._telemetry)
        if not repeated:
            self._settle(run, cell, stage)
        self._host.on_run(run)

    def _settle(self, run: Run, cell: Cell, stage: Stage) -> None:
        if run.status == "ok":
            self._sweeps.set_cell(self._id, cell.position, "pending" if stage == "probe" else "done", stage)
        else:
            state: CellState = "refused" if run.status == "refused" else "failed"
            self._sweeps.set_cell(self._id, cell.position, state, stage, run.failure or _unknown())

    async def _complete(self, run: Run, stage: Stage) -> Run:
        """With its fidelity, and its evidence level: a probe is shorter than a measurement, and one that chooses
        confirms nothing."""
        raced = RACED if stage == "measure" and self._plan.confirm else ""
        run = run.model_copy(update={"evidence": f"{_WORDS[stage]} on {run.recipe.engine}{raced}"})
        return await self._fidelity.joined(run) if self._plan.judges_fidelity else run

    async def _end(self, worker: Worker | None) -> None:
        """Its memory is free before the next one loads."""
        if worker is not None:
            await self._supervisor.stop(worker.id)
            self._supervisor.forget(worker.id)

    def _tell(self, stage: Stage, cell: Cell, place: _Place, now: Progress) -> None:
        inside = now.fraction or 0.0 if now.stage == "measure" else 0.0
        name = f"{cell.name} (repeated: {place.repeated})" if place.repeated else cell.name
        self._host.tell(stage, place.fraction(inside), f"{place}: {name}: {now.stage} {now.message}".rstrip())


@dataclass(frozen=True, slots=True)
class _Place:
    """The step that is at work, counted from 0, how many the stage has, and why it is at work once more."""

    index: int
    total: int
    repeated: str = ""

    def fraction(self, inside: float) -> float:
        return (self.index + inside) / self.total

    def __str__(self) -> str:
        return f"{self.index + 1} of {self.total}"


def _alive(record: SweepRecord) -> Iterator[CellRecord]:
    return (cell for cell in record.cells if cell.state not in ("refused", "failed"))


def _get(sweeps: Sweeps, sweep_id: str) -> SweepRecord:
    record = sweeps.get(sweep_id)
    if record is None:
        raise error_from({"kind": "not_found", "message": f'There is no sweep "{sweep_id}".'})
    return record


def _answer(found: Capacity, run_ids: Sequence[str]) -> str:
    """Of the largest load that met every limit, or of the smallest; of a server that is gone the last."""
    if found.ended == "failed":
        return run_ids[-1]
    wanted = min(point.load for point in found.points) if found.best is None else found.best
    return next(point.run_id for point in found.points if point.load == wanted)


def _unknown() -> Failure:
    return Failure(kind="error", message="It ended without a reason.")
