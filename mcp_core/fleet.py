"""Fleet: the app's workers as the rest of the app sees them: views, counters, whom a request can be sent to.

Everything runs on one asyncio loop. This file does not know how a worker is started or ended (``Supervisor``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_core.errors import Busy, McpError, RecipeError, RequestRejected, WorkerDied
from mcp_core.generation import EngineStats
from mcp_core.memory_readings import MemoryAnalysis
from mcp_core.monitoring.sample import WorkerProbe
from mcp_core.recipe import Recipe
from mcp_core.replies import Server
from mcp_core.results import Effective, Failure, Memory, Prediction
from mcp_core.serving.supervisor import Supervisor, Worker
from mcp_core.views import WorkerView

if TYPE_CHECKING:
    from mcp_core.serving.client import Look, ServerClient

__all__ = ["Fleet"]

# How long the end of a process may lag behind the end of its connection, s.
DEATH_LAG_S = 1.0
# Points of a memory timeline, of loading and of serving each: what a chart can show.
_TIMELINE_POINTS = 400


class Fleet:
    """Workers by id. ``measuring`` says what is being measured on a device, None when nothing is."""

    def __init__(self, supervisor: Supervisor, measuring: Callable[[str], str | None]) -> None:
        self._supervisor = supervisor
        self._measuring = measuring
        self._looks: dict[str, tuple[Look, float]] = {}  # and when it was, time.monotonic()
        self._memory: dict[str, Memory] = {}
        self._predicted: dict[str, Prediction] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}
        self.probes: tuple[WorkerProbe, ...] = ()  # replaced as a whole: the sampler's thread reads it

    def connect(self, worker_id: str) -> Server:
        """As ``replies.Servers.connect``."""
        worker = self.ready(worker_id)
        measured = self._measuring(worker.recipe.device)
        if measured:
            raise Busy(f"{worker.recipe.device} is being measured: {measured}.", "Wait, or cancel the job.")
        assert worker.client is not None
        return Server(worker.client, worker.recipe.model.id, worker.recipe.batching.max_requests, worker.recipe)

    def ready(self, worker_id: str) -> Worker:
        """The worker if it answers requests; else Busy while it loads, WorkerDied with the reason after."""
        worker = self._supervisor.workers.get(worker_id)
        if worker is None:
            raise WorkerDied("This model is no longer loaded.", "Load it again on the Recipe page.")
        if worker.status == "starting":
            raise Busy(f"{worker.title} is still loading.", "Wait until it is ready.")
        if worker.status != "ready":
            cause = worker.failure or Failure(kind="worker", message="The model was unloaded.")
            raise WorkerDied(cause.message, cause.hint or "Load it again on the Recipe page.")
        return worker

    def max_context(self, worker_id: str) -> int | None:
        """As ``replies.Servers.max_context``."""
        worker = self._supervisor.workers.get(worker_id)
        return worker.state.get("max_context") if worker else None

    async def cause_of_death(self, worker_id: str) -> Failure | None:
        """As ``replies.Servers.cause_of_death``."""
        worker = self._supervisor.workers.get(worker_id)
        if worker is None or worker.life is None:
            return None
        await asyncio.wait((worker.life,), timeout=DEATH_LAG_S)
        return worker.failure

    def stats(self, worker_id: str) -> EngineStats | None:
        """The counters of the last look, None before the first one or after the worker's end."""
        worker = self._supervisor.workers.get(worker_id)
        known = self._looks.get(worker_id)
        return known[0].stats if known and worker and worker.status == "ready" else None

    def view(self, worker_id: str, users: int) -> WorkerView | None:
        """The worker as a page shows it."""
        worker = self._supervisor.workers.get(worker_id)
        if worker is None:
            return None
        return _view(worker, self._memory.get(worker_id), self._predicted.get(worker_id), users)

    def keep_prediction(self, worker_id: str, predicted: Prediction | None) -> None:
        """What loading and serving were predicted to take, before anything was downloaded or prepared."""
        if predicted is not None:
            self._predicted[worker_id] = predicted

    def poll(self) -> None:
        """Ask every ready worker for its counters; one that has not answered the last time is not asked again."""
        workers = [each for each in self._supervisor.workers.values() if each.status == "ready"]
        for worker in workers:
            asked = self._asked.get(worker.id)
            if asked is None or asked.done():
                self._asked[worker.id] = asyncio.create_task(self._look(worker))
        self.probes = tuple(map(self._probe, workers))
        self._forget_gone()

    async def apply_live(self, worker_id: str, recipe: Recipe) -> None:
        """Change live fields of a running worker. Raises RecipeError naming a field that needs a new one, Busy."""
        server, worker = self.connect(worker_id), self.ready(worker_id)
        try:
            worker.greeted(await server.client.set_recipe(recipe))
        except RequestRejected as error:
            raise RecipeError(error.message, error.hint) from error

    async def look_again(self, worker_id: str) -> None:
        """Take in what a worker says of itself, after somebody else changed it."""
        with contextlib.suppress(McpError):  # it has ended: the supervisor tells
            worker = self.ready(worker_id)
            worker.greeted(await _client_of(worker).state())

    async def memory_analysis(self, worker_id: str) -> MemoryAnalysis:
        """Where its memory goes. Raises as ``ready``, and McpError when it does not answer."""
        return await _client_of(self.ready(worker_id)).memory_analysis(_TIMELINE_POINTS)

    async def memory_snapshot(self, worker_id: str, seconds: float) -> Path:
        """The file of the allocator's snapshot. Raises RequestRejected where there is none."""
        return await _client_of(self.ready(worker_id)).memory_snapshot(seconds)

    async def close(self) -> None:
        """Stop asking."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def _probe(self, worker: Worker) -> WorkerProbe:
        assert worker.pid is not None  # it is ready
        if worker.id not in self._looks:
            return WorkerProbe(worker.id, worker.pid, worker.title, None)
        look, at_s = self._looks[worker.id]
        return WorkerProbe(worker.id, worker.pid, worker.title, look.stats, at_s, look.latency)

    async def _look(self, worker: Worker) -> None:
        assert worker.client is not None
        try:
            look = await worker.client.look()
        except McpError:
            return  # it is ending or busy; the supervisor tells the first, the next look mends the second
        self._looks[worker.id] = look, time.monotonic()
        if look.memory is not None:
            self._memory[worker.id] = look.memory

    def _forget_gone(self) -> None:
        gone = (self._asked.keys() | self._predicted.keys()) - self._supervisor.workers.keys()
        for worker_id in gone:
            if worker_id in self._asked:
                self._asked.pop(worker_id).cancel()
            self._predicted.pop(worker_id, None)
            self._looks.pop(worker_id, None)
            self._memory.pop(worker_id, None)


def _client_of(worker: Worker) -> ServerClient:
    assert worker.client is not None
    return worker.client


def _view(worker: Worker, memory: Memory | None, predicted: Prediction | None, users: int) -> WorkerView:
    state = worker.state
    at_load = Memory.model_validate(state["memory"]) if state.get("memory") else None
    return WorkerView(
        id=worker.id,
        recipe=worker.recipe,
        title=worker.title,
        state=worker.status,
        url=worker.url,
        pid=worker.pid,
        device=worker.recipe.device,
        progress=worker.progress,
        failure=worker.failure,
        effective=Effective.model_validate(state["effective"]) if state.get("effective") else None,
        memory=memory or at_load,
        predicted=predicted,
        load_s=state.get("load_s"),
        max_context=state.get("max_context"),
        random_weights=bool(state.get("random_weights")),
        users=users,
        log_tail=worker.log_tail,
    )
