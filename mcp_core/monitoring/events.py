"""Events: what happened to workers and jobs, kept for a day so that charts can show it on their time axis.

Found by comparing what there is now with what there was at the look before, so nothing has to report anything. This
file does not know who looks, or how an event is drawn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, Literal

from mcp_core.recipe import Recipe
from mcp_core.views import JobView, WorkerView

__all__ = ["Event", "EventLog"]

Kind = Literal["load", "ready", "failed", "oom", "died", "unload", "change", "job start", "job end"]

KEEP_S = 24 * 3600.0
MOST_EVENTS = 2000
_RUNNING = ("starting", "ready", "stopped")  # a stopped one is still ending


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. ``at_s`` is time.time() of the look that found it, at most a second late."""

    at_s: float
    kind: Kind
    text: str
    worker_id: str | None = None


class EventLog:
    """``look`` from one thread, once a second; ``since`` from any."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._shown: tuple[Event, ...] = ()  # replaced as a whole: other threads read it
        self._workers: dict[str, WorkerView] = {}
        self._jobs: dict[str, JobView] | None = None

    def look(self, workers: Collection[WorkerView], jobs: Collection[JobView]) -> None:
        """Compare with the last look. Jobs that there were at the first one happened before this app."""
        now_s = self._clock()
        found = [*self._of_workers(workers, now_s), *self._of_jobs(jobs, now_s)]
        self._workers = {worker.id: worker for worker in workers}
        self._jobs = {job.id: job for job in jobs}
        if found:
            self._events.extend(found)
            self._shown = tuple(dropwhile(lambda event: event.at_s < now_s - KEEP_S, self._events))

    def since(self, at_s: float) -> tuple[Event, ...]:
        """Events from then on (seconds since 1970), oldest first."""
        return tuple(dropwhile(lambda event: event.at_s < at_s, self._shown))

    def _of_workers(self, workers: Collection[WorkerView], now_s: float) -> Iterator[Event]:
        for worker in workers:
            before = self._workers.get(worker.id)
            if before is None:
                yield Event(now_s, "load", f"Loading {worker.title}", worker.id)
            if before is None or before.state != worker.state:
                yield from _of_state(worker, now_s)
            elif before.state == worker.state == "ready" and before.recipe != worker.recipe:
                yield Event(now_s, "change", f"{worker.title}: {_changes(before, worker)}", worker.id)
        there = {worker.id for worker in workers}
        for gone in self._workers.values():
            if gone.id not in there and gone.state in _RUNNING:
                yield Event(now_s, "unload", f"{gone.title} was unloaded", gone.id)

    def _of_jobs(self, jobs: Collection[JobView], now_s: float) -> Iterator[Event]:
        if self._jobs is None:
            return
        for job in jobs:
            before = self._jobs.get(job.id)
            state = before.state if before else "queued"
            if state == job.state:
                continue
            if state == "queued" and job.state not in ("cancelled", "interrupted"):
                yield Event(now_s, "job start", f"Began: {job.title}", job.worker_id)
            if job.state != "running":
                yield Event(now_s, "job end", f"{_ENDS[job.state]}: {job.title}", job.worker_id)


_ENDS = {"done": "Done", "failed": "Failed", "cancelled": "Cancelled", "interrupted": "Interrupted"}


def _of_state(worker: WorkerView, now_s: float) -> Iterator[Event]:
    """What a worker's new state means."""
    if worker.state == "ready":
        took = f" after {worker.load_s:.0f} s" if worker.load_s else ""
        yield Event(now_s, "ready", f"{worker.title} is ready{took}", worker.id)
    elif worker.state in ("failed", "died"):
        failure = worker.failure
        kind: Kind = "oom" if failure and failure.kind == "oom" else "died" if worker.state == "died" else "failed"
        cause = failure.message if failure else "no reason is known"
        yield Event(now_s, kind, f"{worker.title}: {cause}", worker.id)


def _changes(before: WorkerView, now: WorkerView) -> str:
    """What a live change changed, as "batching.mode continuous → off"."""
    old, new = _fields(before.recipe), _fields(now.recipe)
    return ", ".join(f"{name} {_text(old[name])} → {_text(new[name])}" for name in new if old[name] != new[name])


def _text(value: object) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _fields(recipe: Recipe) -> dict[str, Any]:
    """Dotted names of a Recipe's fields, one level down."""
    flat: dict[str, Any] = {}
    for name, value in recipe.model_dump().items():
        flat |= (
            {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat
