"""``mcp-core bench RECIPE WORKLOAD``: load, measure, store one Run; what goes wrong is a stored Run too."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcp_core import devices, hardware
from mcp_core.commands.arguments import (
    add_json,
    add_progress,
    add_recipe,
    add_set,
    add_workload,
    hub_token,
    read_recipe,
    read_workload,
    require_place,
)
from mcp_core.commands.bench_fidelity import missing_baseline, with_fidelity
from mcp_core.commands.bench_profile import require_recordable, with_trace
from mcp_core.commands.fidelity import add_original, original_of
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport, complain, emit, note, write_file
from mcp_core.commands.run_table import show
from mcp_core.conflicts import require_runnable
from mcp_core.decision.store import Store
from mcp_core.errors import Cancelled, InputError, McpError, WorkerDied, error_from
from mcp_core.evaluation.benchmark import measure, unmeasured
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run
from mcp_core.serving.supervisor import Supervisor, Worker
from mcp_core.workload import Workload

__all__ = ["add_arguments", "run"]

STOPPED = 130
# How long a worker whose connection broke may take to be gone; s.
ENDING_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, WORKLOAD, --url, --out, --fidelity, --original, --profile, --progress, --force, --set, --json."""
    add_recipe(parser)
    add_workload(parser)
    add_set(parser, workload=True)
    add_json(parser)
    parser.add_argument("--url", help="measure this running OpenAI-compatible server; nothing is loaded")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Run there, too")
    parser.add_argument(
        "--fidelity",
        action="store_true",
        help="judge the Recipe's fidelity, too, and see to it that there is a Run of the unquantized model",
    )
    add_original(parser)
    parser.add_argument(
        "--profile", action="store_true", help="record a few steps afterwards, so that why can take them apart"
    )
    add_progress(parser)
    parser.add_argument("--force", action="store_true", help="load it even where it is estimated not to fit")


def run(options: argparse.Namespace) -> int:
    """Measure, store, print. 0 measured, 1 failed or refused, 130 stopped; a Run is stored in each case.

    Raises InputError, before anything is started and with no Run, for what is malformed or cannot run here.
    """
    recipe, workload, machine = read_recipe(options), read_workload(options), hardware.detect()
    if options.url and options.fidelity:
        raise InputError(
            "bench --url knows no Recipe whose fidelity could be judged.", "Use mcp-core fidelity RECIPE --url URL."
        )
    if options.original is not None and not options.fidelity:
        raise InputError("--original goes with --fidelity only.", "Add --fidelity.")
    if options.url and options.profile:
        raise InputError("bench --url records no profile.", "Use mcp-core profile RECIPE --url URL.")
    if options.profile:
        require_recordable(recipe)
    if options.url:
        recipe = endpoint_recipe(recipe, options.url)
    else:
        require_runnable(recipe, machine)
    require_place(options.out)
    return _Bench(recipe, workload, machine, options).run()


class _Bench:
    """One measurement and what becomes of its Run."""

    def __init__(self, recipe: Recipe, workload: Workload, machine: Hardware, options: argparse.Namespace) -> None:
        self._recipe = recipe
        self._workload = workload
        self._machine = machine
        self._options = options
        self._progress = ProgressReport(as_json=options.progress == "json")
        self._records: Sequence[RequestRecord] = ()
        self._telemetry: Any = None

    def run(self) -> int:
        with Store() as store:  # opened first: one that cannot be used is known before minutes are spent
            measured = run_until_stopped(self._measure_url() if self._options.url else self._load_and_measure())
            if self._options.fidelity and measured.status == "ok":
                as_json, original = self._options.progress == "json", original_of(self._options)
                measured = with_fidelity(measured, self._machine, as_json=as_json, original=original)
            self._keep_for_good(store, measured)
            if self._options.fidelity and measured.status == "ok":
                self._see_to_baseline(store, measured)
        self._show(measured)
        if not self._options.json:
            note(f"stored as {measured.id}")
        if measured.failure is not None:
            complain(error_from(measured.failure.model_dump()))
        return {"ok": 0, "cancelled": STOPPED}.get(measured.status, 1)

    def _see_to_baseline(self, store: Store, measured: Run) -> None:
        """Measure the unquantized model with the same workload where the store has no such Run (CONTRACTS.md)."""
        recipe = missing_baseline(measured, store)
        if recipe is None:
            return
        note("no Run of the unquantized model with this workload yet: it is measured now")
        other = _Bench(recipe, self._workload, self._machine, self._options)
        baseline = run_until_stopped(other.measured_now())
        store.add(baseline, other.records, other.telemetry)
        note(f"the baseline is stored as {baseline.id}: {baseline.status}")

    def _keep_for_good(self, store: Store, measured: Run) -> None:
        """Stored, and written where --out says; when the store fails the Run is shown, for it is kept nowhere."""
        try:
            store.add(measured, self._records, self._telemetry)
        except McpError:
            self._show(measured)
            raise
        finally:
            self._write_out(measured)

    async def _measure_url(self) -> Run:
        return await measure(
            self._options.url,
            None,
            self._recipe,
            self._workload,
            self._machine,
            on_progress=self._progress,
            keep=self._keep,
        )

    @property
    def records(self) -> Sequence[RequestRecord]:
        """The requests behind what was measured."""
        return self._records

    @property
    def telemetry(self) -> Any:
        """The machine meanwhile, as the store takes it."""
        return self._telemetry

    async def measured_now(self) -> Run:
        """Load the Recipe and measure it; what goes wrong is a Run, too."""
        return await self._load_and_measure()

    async def _load_and_measure(self) -> Run:
        supervisor = Supervisor()
        try:
            return await self._measure_worker(supervisor)
        except McpError as error:
            return self._unmeasured(error)
        except asyncio.CancelledError:
            return self._unmeasured(Cancelled("Loading was stopped.", "Nothing was measured."))
        finally:
            await supervisor.close()

    async def _measure_worker(self, supervisor: Supervisor) -> Run:
        worker = await supervisor.start(
            self._recipe, hub_token=hub_token(), force=self._options.force, on_progress=self._progress
        )
        assert worker.url is not None
        label = f"mcp-core bench {self._workload.name}"
        measured = await measure(
            worker.url,
            worker.token,
            worker.recipe,
            self._workload,
            self._machine,
            on_progress=self._progress,
            keep=self._keep,
            lease=devices.acquire(worker.recipe.device, "measure", label, besides=[worker.lease.holder.id]),
            control_url=worker.control_url,
        )
        if self._options.profile and measured.status == "ok":
            measured = await with_trace(measured, worker, self._progress)
        return await _with_cause_of_death(measured, supervisor, worker)

    def _unmeasured(self, error: McpError) -> Run:
        return unmeasured(self._recipe, self._workload, self._machine, error)

    def _keep(self, _run: Run, records: Sequence[RequestRecord], telemetry: Any) -> None:
        self._records, self._telemetry = records, telemetry

    def _write_out(self, measured: Run) -> None:
        if self._options.out is None:
            return
        hint = f"Print the Run again: mcp-core runs show {measured.id} --json"
        write_file(self._options.out, measured.model_dump_json(indent=2) + "\n", hint)

    def _show(self, measured: Run) -> None:
        if self._options.json:
            emit(measured.model_dump(mode="json"))
        else:
            show(measured)


async def _with_cause_of_death(measured: Run, supervisor: Supervisor, worker: Worker) -> Run:
    """A connection that broke says little; how the worker's process ended says why: a signal, lack of memory."""
    if measured.failure is None or measured.failure.kind != WorkerDied.kind:
        return measured
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(supervisor.wait(worker.id), ENDING_S)
    return measured.model_copy(update={"failure": worker.failure or measured.failure})
