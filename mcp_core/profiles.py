"""Profiles: recording a worker's steps from the app, and the traces that were kept.

Pages reach it as ``workbench.profiles``; every method may be called from any thread. This file does not know how a
worker is recorded (``evaluation/profile_job.py``) or a trace read.
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_core.errors import Busy
from mcp_core.evaluation import trace_store
from mcp_core.evaluation.trace_store import KeptTrace
from mcp_core.fleet import Fleet
from mcp_core.job_registry import JobRegistry
from mcp_core.loop_thread import LoopThread
from mcp_core.profile_plan import ProfileLoad, ProfilePlan, require_traceable

__all__ = ["Profiles"]


class Profiles:
    """``require_quiet`` raises Busy while anything is at work on a device."""

    def __init__(
        self, loop: LoopThread, fleet: Fleet, jobs: JobRegistry, require_quiet: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._fleet = fleet
        self._jobs = jobs
        self._require_quiet = require_quiet

    def start(self, worker_id: str, plan: ProfilePlan, load: ProfileLoad | None, run_id: str | None = None) -> str:
        """Record a worker in a job and return the job's id; the answer is {traces, summary}.

        With a ``load`` it waits its turn on the device, and the worker is held; without one it records whatever
        others ask meanwhile. ``run_id`` is the Run that the trace is to explain. Raises InputError for an engine
        that records nothing, WorkerDied, and Busy while the worker is measured or at work.
        """
        return self._loop.call(lambda: self._start(worker_id, plan, load, run_id))

    def list(self) -> tuple[KeptTrace, ...]:
        """Every trace that is kept, newest first."""
        return trace_store.list_traces()

    def find(self, trace_id: str) -> KeptTrace:
        """One of them. Raises InputError when it is not there."""
        return trace_store.find(trace_id)

    def delete(self, trace_id: str) -> None:
        """Drop one. Raises InputError when it is not there."""
        trace_store.delete(trace_id)

    def _start(self, worker_id: str, plan: ProfilePlan, load: ProfileLoad | None, run_id: str | None) -> str:
        worker = self._fleet.ready(worker_id)
        require_traceable(worker.recipe)
        if load is not None:
            if self._jobs.active_on(worker_id):
                raise Busy(f"{worker.title} is being measured already.", "Wait, or cancel that job.")
            self._require_quiet(worker.recipe.device)
        return self._jobs.submit(
            "profile",
            f"profile of {worker.title}",
            {
                "worker_url": worker.url,
                "control_url": worker.control_url,
                "plan": plan.model_dump(mode="json"),
                "load": load.model_dump(mode="json") if load else None,
                "run_id": run_id,
            },
            {"token": worker.token},
            device=worker.recipe.device if load is not None else None,
            worker_id=worker_id if load is not None else None,
            detail={"recipe_fingerprint": worker.recipe.fingerprint, "profiled": worker_id},
        )
