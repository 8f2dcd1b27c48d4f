"""Sampler: one sample of the machine and its workers a second, and their series over a day.

This file does not know how a sample is taken (``taker.py``), how a worker is asked for its counters (the probes are
handed in) or how a series is drawn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import dropwhile
from typing import Any

import pynvml

from mcp_core.monitoring.history import MOST_ROWS, History, Window
from mcp_core.monitoring.sample import ProcessProbe, Sample, WorkerProbe
from mcp_core.monitoring.series import readings_of
from mcp_core.monitoring.taker import Taker

__all__ = ["Sampler"]

log = logging.getLogger(__name__)

_FIRST_CPU_SPAN_S = 0.1


class Sampler:
    """A daemon thread that takes one Sample every ``interval_s``; whole ones are kept for ``keep_s``.

    ``probes`` and ``processes`` are called once a sample from that thread and must return at once. ``nvml`` is
    pynvml or a stand-in.
    """

    def __init__(
        self,
        probes: Callable[[], tuple[WorkerProbe, ...]],
        interval_s: float = 1.0,
        keep_s: float = 120.0,
        *,
        processes: Callable[[], tuple[ProcessProbe, ...]] = tuple,
        nvml: Any = pynvml,
    ) -> None:
        self._probes = probes
        self._processes = processes
        self._interval_s = interval_s
        self._taker = Taker(nvml)
        self._samples: deque[Sample] = deque(maxlen=max(1, round(keep_s / interval_s)))
        self._history = History()
        self._lock = threading.Lock()  # a deque that grows while it is copied raises
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mcp-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample; once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give NVML back; what was sampled stays readable."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def window(self, seconds: float) -> tuple[Sample, ...]:
        """The whole samples of the last ``seconds``, oldest first."""
        since = time.time() - seconds
        with self._lock:
            samples = tuple(self._samples)
        return tuple(dropwhile(lambda sample: sample.at_s < since, samples))

    def history(self, from_s: float, to_s: float, most_rows: float = MOST_ROWS) -> Window:
        """All series between two times (seconds since 1970), in the finest rows that are kept of then.

        Where those are more than ``most_rows``, in coarser ones.
        """
        with self._lock:
            return self._history.window(from_s, to_s, most_rows)

    def _run(self) -> None:
        self._taker.open()
        self._stopping.wait(min(self._interval_s, _FIRST_CPU_SPAN_S))
        due_s = time.monotonic()
        try:
            while not self._stopping.is_set():
                self._sample_once()
                due_s = max(due_s + self._interval_s, time.monotonic())
                self._stopping.wait(due_s - time.monotonic())
        finally:
            self._taker.close()

    def _sample_once(self) -> None:
        try:
            sample = self._taker.take(self._probes(), self._processes())
            readings = readings_of(sample)
            with self._lock:
                self._samples.append(sample)
                self._history.add(sample.at_s, readings)
        except Exception:
            # The thread's border: a gap in the charts is better than no charts from here on.
            log.exception("a sample was skipped")
