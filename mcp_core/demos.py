"""Demos: what the Playground shows beside a chat: a race of two Recipes, and many users at once.

Pages reach it as ``workbench.demos``; every method may be called from any thread. None of it writes a Run. This
file does not know how a race is measured (``races.py``) or a crowd sent (``evaluation/crowd_job.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from mcp_core import hardware
from mcp_core.crowd import Crowd, CrowdPlan, crowd_of, require_possible
from mcp_core.errors import Busy
from mcp_core.fleet import Fleet
from mcp_core.generation import Sampling
from mcp_core.job_registry import JobRegistry
from mcp_core.loop_thread import LoopThread
from mcp_core.race import RaceView
from mcp_core.races import Entrant, Races
from mcp_core.views import JobView

__all__ = ["Demos"]


class Demos:
    """``require_quiet`` raises Busy while anything is at work on a device."""

    def __init__(
        self,
        loop: LoopThread,
        fleet: Fleet,
        jobs: JobRegistry,
        own_leases: Callable[[], Collection[str]],
        require_quiet: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._fleet = fleet
        self._jobs = jobs
        self._races = Races(fleet, own_leases)
        self._require_quiet = require_quiet

    def start_race(
        self, worker_ids: Sequence[str], prompt: str, sampling: Sampling, max_tokens: int, *, together: bool = False
    ) -> str:
        """Measure the same prompt on each worker and return the race's id.

        One after the other with the device to themselves, or ``together``. Raises InputError, WorkerDied, Busy.
        """
        return self._loop.call(lambda: self._start_race(worker_ids, prompt, sampling, max_tokens, together))

    def race(self, race_id: str) -> RaceView | None:
        """As it is now, None for an unknown id."""
        return self._loop.call(lambda: self._races.view(race_id))

    def stop_race(self, race_id: str) -> None:
        """End what has not ended."""
        self._loop.call(lambda: self._races.stop(race_id))

    def start_crowd(self, worker_id: str, plan: CrowdPlan) -> str:
        """Send many chats at once in each mode of the plan and return the job's id.

        The worker is in its own mode again at the end. Raises InputError for what it cannot hold, WorkerDied, and
        Busy while it is measured or at work.
        """
        return self._loop.call(lambda: self._start_crowd(worker_id, plan))

    def crowd(self, jid: str) -> Crowd | None:
        """That job's requests as they are now, None before there is anything."""
        job = self._loop.call(lambda: self._jobs.view(jid))
        return None if job is None else crowd_of(job)

    # On the loop

    def racing(self, device: str) -> str | None:
        """The race that has this device now, in words; None when there is none."""
        return self._races.measuring(device)

    def after_job(self, job: JobView) -> None:
        """A crowd that was killed left its worker in whatever mode it was: look."""
        if job.verb == "crowd" and job.worker_id is not None:
            self._loop.begin(self._fleet.look_again(job.worker_id))

    async def close(self) -> None:
        """Stop every race; crowds end with the other jobs."""
        await self._races.close()

    def _start_race(
        self, worker_ids: Sequence[str], prompt: str, sampling: Sampling, max_tokens: int, together: bool
    ) -> str:
        workers = [self._fleet.ready(worker_id) for worker_id in worker_ids]
        for worker in workers:
            self._require_quiet(worker.recipe.device)
        entrants = [Entrant(worker.id, worker.title, worker.recipe) for worker in workers]
        return self._races.start(entrants, prompt, sampling, max_tokens, together=together)

    def _start_crowd(self, worker_id: str, plan: CrowdPlan) -> str:
        worker = self._fleet.ready(worker_id)
        recipe = worker.recipe
        require_possible(plan, recipe, hardware.detect(), worker.state.get("max_context"))
        if self._jobs.active_on(worker_id):
            raise Busy(f"{worker.title} is being measured already.", "Wait, or cancel that job.")
        self._require_quiet(recipe.device)
        return self._jobs.submit(
            "crowd",
            f"{plan.users} users of {worker.title}",
            {
                "worker_url": worker.url,
                "recipe": recipe.model_dump(mode="json"),
                "plan": plan.model_dump(mode="json"),
            },
            {"token": worker.token},
            device=recipe.device,
            worker_id=worker_id,
        )
