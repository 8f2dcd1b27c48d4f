"""Watch: what happens on this machine and in this app, as it happens and over a day; pages hold it as
``workbench.watch``.

This file does not know how a sample is taken or an event is found (``monitoring/``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pynvml

from mcp_core.monitoring.events import Event, EventLog
from mcp_core.monitoring.history import MOST_ROWS, Window
from mcp_core.monitoring.sample import ProcessProbe, Sample, WorkerProbe
from mcp_core.monitoring.sampler import Sampler
from mcp_core.views import JobView, WorkerView

__all__ = ["Watch"]


class Watch:
    """Samples in a thread of its own from ``start`` to ``stop``; it is told of workers and jobs by ``look``."""

    def __init__(self, probes: Callable[[], tuple[WorkerProbe, ...]], nvml: Any = pynvml) -> None:
        self._this = ProcessProbe(os.getpid(), "MCP (this app)")
        self._processes: tuple[ProcessProbe, ...] = (self._this,)  # replaced as a whole: the sampler reads it
        self._sampler = Sampler(probes, processes=lambda: self._processes, nvml=nvml)
        self._events = EventLog()

    def start(self) -> None:
        """Begin to sample."""
        self._sampler.start()

    def stop(self) -> None:
        """End it; what was seen stays readable."""
        self._sampler.stop()

    def look(
        self, workers: Collection[WorkerView], jobs: Collection[JobView], running: Iterable[tuple[int, str]]
    ) -> None:
        """Once a second: workers and jobs as they are, and process id and title of each job that runs."""
        self._events.look(workers, jobs)
        self._processes = (self._this, *(ProcessProbe(pid, f"job: {title}") for pid, title in running))

    def samples(self, seconds: float) -> tuple[Sample, ...]:
        """Whole samples of the last ``seconds`` (at most two minutes), oldest first, one a second."""
        return self._sampler.window(seconds)

    def history(self, from_s: float, to_s: float, most_rows: float = MOST_ROWS) -> Window:
        """Every series between two times of the last day, in rows as fine as ``most_rows`` and the age allow."""
        return self._sampler.history(from_s, to_s, most_rows)

    def events(self, since_s: float) -> tuple[Event, ...]:
        """What happened to workers and jobs from then on, at most a day back, oldest first."""
        return self._events.since(since_s)
