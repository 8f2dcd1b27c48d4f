"""Workbench: the one object that pages hold. Every method may be called from any thread and returns values.

Inside is one asyncio thread that owns the workers, the chat streams and the jobs; nothing else touches them.
This file does not know how any of it is done (``fleet``, ``conversations``, ``batches``, ``job_registry``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp_core import conflicts, devices, hardware, paths
from mcp_core.batches import Batches
from mcp_core.conversations import Conversations
from mcp_core.decisions import Decisions
from mcp_core.demos import Demos
from mcp_core.errors import Busy, McpError
from mcp_core.fleet import Fleet
from mcp_core.generation import EngineStats, Sampling
from mcp_core.goal import Goal
from mcp_core.hardware import Hardware
from mcp_core.job_registry import JOB_COMMAND, JobRegistry
from mcp_core.loop_thread import LoopThread
from mcp_core.lost_runs import LostRuns
from mcp_core.memory_readings import MemoryAnalysis
from mcp_core.model_lookups import ModelLookups
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.monitoring.sample import Sample
from mcp_core.profiles import Profiles
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Prediction, RequestRecord, Run
from mcp_core.serving.supervisor import WORKER_COMMAND, Supervisor, Worker
from mcp_core.studies import Studies
from mcp_core.sweep_desk import SweepDesk
from mcp_core.views import BatchItemView, ConversationView, JobView, WorkerView
from mcp_core.watch import Watch
from mcp_core.workload import Workload

if TYPE_CHECKING:
    from mcp_core.decision.store import Store
    from mcp_core.models.architecture import ResolvedModel
    from mcp_core.models.correction import Error
    from mcp_core.models.footprint import Footprint, Predictor
    from mcp_core.models.prepared import PreparedModel

__all__ = ["Workbench"]

log = logging.getLogger(__name__)

TICK_S = 1.0


class Workbench:
    """What one server holds. ``store_url`` is an SQLAlchemy URL, None for the usual one.

    ``worker_command`` and ``job_command`` start the child processes.
    """

    def __init__(
        self,
        store_url: str | None = None,
        *,
        worker_command: Sequence[str] = WORKER_COMMAND,
        job_command: Sequence[str] = JOB_COMMAND,
    ) -> None:
        self._store_url = store_url or paths.store_url()
        self._lookups = ModelLookups()
        self._app = devices.register_app("MCP")
        self._lost_runs = LostRuns(lambda: self._store)
        self._supervisor = Supervisor(worker_command)
        self._jobs = JobRegistry(self._own_leases, job_command, self._after_job)
        self._fleet = Fleet(self._supervisor, self._measuring)
        self._conversations = Conversations(self._fleet)
        self._batches = Batches(self._fleet)
        self.watch = Watch(lambda: self._fleet.probes)
        self._loop = LoopThread("mcp-workbench")
        self.demos = Demos(self._loop, self._fleet, self._jobs, self._own_leases, self._require_quiet)
        self.profiles = Profiles(self._loop, self._fleet, self._jobs, self._require_quiet)
        self.studies = Studies(self._submit_study, self.jobs, lambda: self._store)
        self.decisions = Decisions(lambda: self._store, self.resolve)
        self.sweeps = SweepDesk(self._submit_study, lambda: self._store, self.resolve)
        self._loop.begin(self._tick())
        self.watch.start()

    # The machine and its models

    def hardware(self) -> Hardware:
        """This machine; free memory is as of now."""
        return hardware.detect()

    def other_apps(self) -> tuple[devices.Holder, ...]:
        """Other apps that are open on the same MCP_HOME; they share its devices and its store."""
        return tuple(app for app in devices.app_instances() if app.id != self._app.holder.id)

    def resolve(self, ref: ModelRef, hub_token: str | None = None) -> ResolvedModel:
        """Look a model up. Raises as ``catalog.resolve``."""
        return self._lookups.resolve(ref, hub_token)

    def footprint(self, recipe: Recipe, hub_token: str | None = None) -> Footprint:
        """What the Recipe would take here. Raises as ``resolve``."""
        from mcp_core.models.draft_memory import draft_of
        from mcp_core.models.footprint import estimate

        machine = self.hardware()
        recipe = conflicts.resolve(recipe, machine)
        draft = draft_of(recipe, lambda ref: self.resolve(ref, hub_token))
        return estimate(recipe, self.resolve(recipe.model, hub_token), machine, draft=draft)

    def predictor(self, recipe: Recipe, hub_token: str | None = None, *, corrected: bool = True) -> Predictor:
        """The Recipe's footprint under any load, corrected by Runs of this machine. Raises as ``resolve``."""
        from mcp_core.models.correction import NONE, correction_of
        from mcp_core.models.draft_memory import draft_of
        from mcp_core.models.footprint import Predictor

        machine = self.hardware()
        correction = correction_of(self.footprint_errors(recipe)) if corrected else NONE
        resolved = self.resolve(recipe.model, hub_token)
        draft = draft_of(recipe, lambda ref: self.resolve(ref, hub_token))
        return Predictor(conflicts.resolve(recipe, machine), resolved, machine, correction, draft)

    def footprint_errors(self, recipe: Recipe) -> tuple[Error, ...]:
        """Predicted against measured of Runs here, same kind of device and family of schemes, newest first."""
        from mcp_core.models.correction import HISTORY_RUNS, errors_of

        machine = self.hardware()
        return errors_of(self._store.list(HISTORY_RUNS), conflicts.resolve(recipe, machine), machine.host)

    def prepared_models(self) -> tuple[PreparedModel, ...]:
        """Models kept on this machine, with their sizes."""
        from mcp_core.models import prepared

        return prepared.list_models()

    def delete_model(self, model_id: str) -> None:
        """Delete one of them. Raises Busy while it is loaded, ModelNotFound."""
        from mcp_core.models import prepared

        users = [view.title for view in self.workers() if model_id in _model_ids(view)]
        if users:
            raise Busy(f"{users[0]} is loaded from it.", "Unload it first.")
        prepared.delete(model_id)
        self._lookups.forget()

    # Workers

    def load(self, recipe: Recipe, *, hub_token: str | None = None, force: bool = False) -> str:
        """Check the Recipe, start a worker and return its id at once.

        Raises RecipeError, ModelNotFound, InvalidModel, UnsafeModel, HubError, DoesNotFit (not with
        ``force``), and Busy while the device is being measured.
        """
        from mcp_core.serving.admission import admit

        admitted = admit(recipe, hub_token=hub_token, force=force)
        predicted: Prediction | None = None
        with contextlib.suppress(McpError):  # forced, it may be beyond prediction; the worker says what is wrong
            predicted = self.footprint(admitted, hub_token).as_prediction()
        worker = self._loop.call(lambda: self._supervisor.launch(admitted, hub_token=hub_token, force=force))
        self._loop.call(lambda: self._fleet.keep_prediction(worker.id, predicted))
        self._loop.begin(self._forget_lookups_after(worker))
        return worker.id

    def workers(self) -> tuple[WorkerView, ...]:
        """Every worker that has not been unloaded or dismissed, oldest first."""
        return self._loop.call(lambda: tuple(filter(None, map(self._worker_view, self._supervisor.workers))))

    def worker(self, worker_id: str) -> WorkerView | None:
        """One worker, None when it is gone."""
        return self._loop.call(lambda: self._worker_view(worker_id))

    def cancel_load(self, worker_id: str) -> None:
        """Stop loading; the worker is gone from the list when its process has ended."""
        self._loop.begin(self._unload(worker_id))

    def unload(self, worker_id: str) -> None:
        """End a worker; until its process has ended it is listed as stopped."""
        self._loop.begin(self._unload(worker_id))

    def dismiss(self, worker_id: str) -> None:
        """Drop a failed, died or stopped worker from the list."""
        self._loop.call(lambda: self._supervisor.forget(worker_id))

    def apply_live(self, worker_id: str, recipe: Recipe) -> None:
        """Change live fields of a running worker. Raises RecipeError naming a field that needs a new one."""
        conflicts.require_runnable(recipe, self.hardware())
        self._loop.wait_for(self._fleet.apply_live(worker_id, recipe))

    def stats(self, worker_id: str) -> EngineStats | None:
        """The engine's counters, at most about a second old; None before the first look."""
        return self._loop.call(lambda: self._fleet.stats(worker_id))

    def memory_analysis(self, worker_id: str) -> MemoryAnalysis:
        """Where a worker's memory goes: by phase and by module. Raises Busy, WorkerDied, McpError."""
        return self._loop.wait_for(self._fleet.memory_analysis(worker_id))

    def memory_snapshot(self, worker_id: str, seconds: float = 5.0) -> Path:
        """Record the allocator for so long and return its file. Raises RequestRejected with the reason on a CPU."""
        return self._loop.wait_for(self._fleet.memory_snapshot(worker_id, seconds))

    # Conversations

    def new_conversation(self, worker_id: str, system: str = "") -> str:
        """Begin one and return its id. Raises WorkerDied or Busy."""
        return self._loop.call(lambda: self._conversations.new(worker_id, system))

    def conversation(self, cid: str) -> ConversationView | None:
        """As it is now, None for an unknown id. Not asked for 120 s, a reply is stopped."""
        return self._loop.call(lambda: self._conversations.view(cid))

    def send(self, cid: str, text: str, sampling: Sampling, max_tokens: int) -> None:
        """Ask; the reply grows in ``conversation``. Raises Busy while one is written, WorkerDied."""
        self._loop.call(lambda: self._conversations.send(cid, text, sampling, max_tokens))

    def regenerate(self, cid: str, sampling: Sampling, max_tokens: int) -> None:
        """Ask for the last reply again."""
        self._loop.call(lambda: self._conversations.regenerate(cid, sampling, max_tokens))

    def edit(self, cid: str, index: int, text: str, sampling: Sampling, max_tokens: int) -> None:
        """Replace the question at ``index`` of the view's messages and what follows it, and ask."""
        self._loop.call(lambda: self._conversations.edit(cid, index, text, sampling, max_tokens))

    def stop(self, cid: str) -> None:
        """Stop the reply that is being written; what has come is kept."""
        self._loop.call(lambda: self._conversations.stop(cid))

    def set_system(self, cid: str, text: str) -> None:
        """Change the system prompt, from the next reply on."""
        self._loop.call(lambda: self._conversations.set_system(cid, text))

    def clear(self, cid: str) -> None:
        """Forget the messages; the system prompt stays."""
        self._loop.call(lambda: self._conversations.clear(cid))

    def use_worker(self, cid: str, worker_id: str) -> None:
        """Ask another worker from the next reply on."""
        self._loop.call(lambda: self._conversations.use_worker(cid, worker_id))

    def start_batch(self, worker_id: str, prompts: Sequence[str], sampling: Sampling, max_tokens: int) -> str:
        """Send all prompts at once and return the batch's id."""
        return self._loop.call(lambda: self._batches.start(worker_id, prompts, sampling, max_tokens))

    def batch(self, bid: str) -> tuple[BatchItemView, ...]:
        """Every prompt with what has come of it; empty for an unknown id."""
        return self._loop.call(lambda: self._batches.view(bid))

    def stop_batch(self, bid: str) -> None:
        """Stop what has not ended."""
        self._loop.call(lambda: self._batches.stop(bid))

    # Jobs and Runs

    def start_bench(self, worker_id: str, workload: Workload) -> str:
        """Measure a worker in a job and return the job's id; it waits its turn on the device.

        Raises WorkerDied, and Busy while the worker is measured already, a reply is being written on its
        device, or another app uses the device.
        """
        return self._loop.call(lambda: self._submit_measuring("bench", worker_id, workload))

    def start_capacity(self, worker_id: str, workload: Workload, goal: Goal, budget_s: float | None = None) -> str:
        """Find the largest load that meets the Goal's limits, each point a Run; the job's id, whose answer is a
        Capacity. Raises as ``start_bench``."""
        asked = {"goal": goal.model_dump(mode="json"), "budget_s": budget_s}
        return self._loop.call(lambda: self._submit_measuring("capacity", worker_id, workload, asked))

    def jobs(self) -> tuple[JobView, ...]:
        """Every job, newest first; those of earlier starts of the app too."""
        return self._loop.call(self._jobs.views)

    def job(self, jid: str) -> JobView | None:
        """One job."""
        return self._loop.call(lambda: self._jobs.view(jid))

    def cancel_job(self, jid: str) -> None:
        """Take a job out of the queue, or end it within about 5 s."""
        self._loop.begin(self._jobs.cancel(jid))

    def telemetry(self, seconds: float) -> tuple[Sample, ...]:
        """Whole samples of the last ``seconds`` (at most two minutes), oldest first, one a second."""
        return self.watch.samples(seconds)

    def runs(self, limit: int = 100, offset: int = 0) -> tuple[Run, ...]:
        """Stored Runs, newest first. This and the next three raise StoreError."""
        return self._store.list(limit, offset)

    def run(self, run_id: str) -> Run | None:
        """One Run."""
        return self._store.get(run_id)

    def records(self, run_id: str) -> tuple[RequestRecord, ...]:
        """The requests behind a Run."""
        return self._store.records(run_id)

    def run_telemetry(self, run_id: str) -> RunTelemetry | None:
        """The machine and the worker while a Run was measured; None for one that was made without. StoreError."""
        return self._store.run_telemetry(run_id)

    def delete_run(self, run_id: str) -> None:
        """Delete a Run with its records."""
        self._store.delete(run_id)

    def close(self) -> None:
        """End jobs, streams, workers and threads; returns when they have ended. Again is harmless."""
        if self._loop.closed:
            return
        self.watch.stop()
        self._loop.wait_for(self._close())
        self._loop.close()
        self._app.release()
        if "_store" in self.__dict__:
            self._store.close()

    @functools.cached_property
    def _store(self) -> Store:
        # SQLAlchemy takes a quarter of a second to import: not before a page asks for Runs.
        from mcp_core.decision.store import Store

        return Store(self._store_url)

    # On the loop

    async def _tick(self) -> None:
        while True:
            try:
                self._fleet.poll()
                self._conversations.stop_unseen()
                self._jobs.start_queued()
                views = tuple(filter(None, map(self._worker_view, self._supervisor.workers)))
                self.watch.look(views, self._jobs.views(), self._jobs.processes())
            except Exception:  # the border of the loop: one bad second must not end all the others
                log.exception("a tick was skipped")
            await asyncio.sleep(TICK_S)

    async def _close(self) -> None:
        await self._conversations.close()
        await self._batches.close()
        await self.demos.close()
        await self._jobs.close()
        await self._lost_runs.close()
        await self._fleet.close()
        await self._supervisor.close()

    async def _unload(self, worker_id: str) -> None:
        if worker_id in self._supervisor.workers:
            await self._supervisor.stop(worker_id)
            self._supervisor.forget(worker_id)

    async def _forget_lookups_after(self, worker: Worker) -> None:
        await worker.settled.wait()
        self._lookups.forget()

    def _worker_view(self, worker_id: str) -> WorkerView | None:
        return self._fleet.view(worker_id, self._conversations.users(worker_id))

    def _own_leases(self) -> tuple[str, ...]:
        return tuple(worker.lease.holder.id for worker in self._supervisor.workers.values())

    def _measuring(self, device: str) -> str | None:
        return self._jobs.measuring(device) or self.demos.racing(device)

    def _submit_measuring(
        self, verb: str, worker_id: str, workload: Workload, asked: dict[str, Any] | None = None
    ) -> str:
        worker = self._fleet.ready(worker_id)
        if self._jobs.active_on(worker_id):
            raise Busy(f"{worker.title} is being measured already.", "Wait, or cancel that job.")
        self._require_quiet(worker.recipe.device)
        return self._jobs.submit(
            verb,
            f"{'capacity: ' if verb == 'capacity' else ''}{workload.name} on {worker.title}",
            {
                "worker_url": worker.url,
                "control_url": worker.control_url,
                "recipe": worker.recipe.model_dump(mode="json"),
                "workload": workload.model_dump(mode="json"),
            }
            | (asked or {}),
            {"token": worker.token, "store_url": self._store_url},
            device=worker.recipe.device,
            worker_id=worker_id,
            workload=workload,
        )

    def _submit_study(
        self,
        verb: str,
        title: str,
        request: dict[str, Any],
        recipe: Recipe,
        hub_token: str | None = None,
        /,
        *,
        alone: bool = True,
    ) -> str:
        """As ``studies.Submit``. ``recipe`` is what the study is about; the request carries what it needs of it."""
        machine = self.hardware()
        conflicts.require_runnable(recipe, machine)
        device = conflicts.resolve(recipe, machine).device
        secrets = {"store_url": self._store_url, "hub_token": hub_token}
        detail = {"recipe_fingerprint": recipe.fingerprint}

        def submit() -> str:
            if alone:
                self._require_quiet(device)
            held = device if alone else None
            return self._jobs.submit(verb, title, request, secrets, device=held, detail=detail)

        return self._loop.call(submit)

    def _after_job(self, job: JobView) -> None:
        self._lost_runs.after_job(job)
        self.demos.after_job(job)

    def _require_quiet(self, device: str) -> None:
        for worker in self._supervisor.workers.values():
            busy = self._conversations.streaming_on(worker.id) or self._batches.running_on(worker.id)
            if worker.recipe.device == device and (busy or worker.status == "starting"):
                raise Busy(f"{worker.title} is at work on {device}.", "Wait until it is idle, or stop it.")


def _model_ids(view: WorkerView) -> tuple[str | None, str]:
    """The ids under which ``prepared`` may list what a worker was loaded from."""
    return view.recipe.model.sha256, f"hub:{view.recipe.model.id}"
