"""MemoryRecorder: a worker's memory over time, by phase: a thread looks a few times a second, and at every change.

A look costs some tens of microseconds (measured: 0.1 % of a core at the rate below). This file does not know the
model or torch: readings of a device come from outside (``DeviceReadings``).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from mcp_core.generation import TokenEvent
from mcp_core.memory_readings import MemoryPhase, MemoryPoint, MemoryReading, MemoryTimeline
from mcp_core.serving import process_memory

__all__ = ["DeviceReadings", "MemoryRecorder", "ServingPhases", "thin"]

INTERVAL_S = 0.25
# All of loading, up to ten minutes of it, and the last ten minutes after it.
KEPT_POINTS = 2400
# Phases of short requests change many times a second; a point for each would push out the rest.
LEAST_GAP_S = 0.1

_FIGURES = tuple(MemoryReading.model_fields)


class DeviceReadings(Protocol):
    """What a device's allocator and driver say now."""

    def read(self) -> MemoryReading:
        """Without ``resident_bytes``."""


class MemoryRecorder:
    """Made when the worker starts; ``phase`` names what it does from now on. Thread-safe."""

    def __init__(self, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._started_s = clock()
        self._lock = threading.Lock()
        self._device: DeviceReadings | None = None
        self._phase, self._since_s = "imports", self._started_s
        self._phases: dict[str, MemoryPhase] = {}
        self._loading: deque[MemoryPoint] = deque(maxlen=KEPT_POINTS)
        self._serving: deque[MemoryPoint] = deque(maxlen=KEPT_POINTS)
        self._points = self._loading
        self._look: Callable[[], None] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        """Look regularly from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what was seen stays."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def watch(self, device: DeviceReadings | None) -> None:
        """Read this device, too."""
        self._device = device

    def phase(self, name: str) -> None:
        """The phase that was ends and this one begins; memory is read at the border."""
        if name == self._phase:
            return
        now_s = self._clock()
        points = self._points
        recent = points is self._serving and points and now_s - self._started_s - points[-1].at_s < LEAST_GAP_S
        quiet = recent and self._phase in self._phases  # each phase is read once at least
        reading = None if quiet else self._read()
        with self._lock:
            self._take(now_s, reading)
            self._phase = name

    def served(self, look: Callable[[], None]) -> None:
        """Loading is over: what comes next is kept apart, so that it cannot push loading out.

        ``look`` is called before every regular reading; it may name another phase.
        """
        self.phase("idle")
        self._points = self._serving
        self._look = look

    def timeline(self, most: int | None = None) -> MemoryTimeline:
        """What was seen so far; of loading and of serving at most ``most`` points each."""
        reading = self._read()
        with self._lock:
            self._take(self._clock(), reading)
            loading, serving = list(self._loading), list(self._serving)
            phases = tuple(self._phases.values())
        points = (*thin(loading, most), *thin(serving, most)) if most else (*loading, *serving)
        return MemoryTimeline(phases=phases, points=points)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            if self._look:
                self._look()
            reading = self._read()
            with self._lock:
                self._take(self._clock(), reading)

    def _read(self) -> MemoryReading:
        memory = process_memory.read_memory()
        resident = memory.resident_bytes if memory else None
        device = self._device.read() if self._device else MemoryReading()
        return device.model_copy(update={"resident_bytes": resident})

    def _take(self, now_s: float, reading: MemoryReading | None) -> None:
        """Called with the lock held: the running phase lasted until now, and this was seen of it."""
        known = self._phases.get(self._phase) or MemoryPhase(name=self._phase, seconds=0.0, samples=0)
        lasted = {
            "seconds": known.seconds + now_s - self._since_s,
            "samples": known.samples + (reading is not None),
        }
        highest = _highest(known, reading) if reading else {}
        self._phases[self._phase] = known.model_copy(update=lasted | highest)
        self._since_s = now_s
        if reading is not None:
            figures = reading.model_dump()
            self._points.append(MemoryPoint(at_s=now_s - self._started_s, phase=self._phase, **figures))


class ServingPhases:
    """Tells prefill from decode by what the engine emits; stands between the engine and whom it tells.

    That a request is prefilled is noticed at the next look, so short prefills last a little longer than they are
    counted; a first token is noticed when it comes.
    """

    def __init__(self, recorder: MemoryRecorder, deliver: Callable[[list[TokenEvent]], None]) -> None:
        self._recorder = recorder
        self._deliver = deliver
        self._busy: Callable[[], bool] = bool
        self._decoding: set[str] = set()

    def begin(self, busy: Callable[[], bool]) -> None:
        """Loading is over; ``busy`` says whether the engine has a request."""
        self._busy = busy
        self._recorder.served(self.look)

    def __call__(self, events: list[TokenEvent]) -> None:
        """Pass events on, from the engine's thread."""
        self._deliver(events)
        before = bool(self._decoding)
        for event in events:
            if event.finish is not None:
                self._decoding.discard(event.request_id)
            else:
                self._decoding.add(event.request_id)
        if before and not self._decoding:
            self.look()
        elif self._decoding and not before:
            self._recorder.phase("prefill")
            self._recorder.phase("decode")

    def look(self) -> None:
        """While no token comes: is one on its way?"""
        if not self._decoding:
            self._recorder.phase("prefill" if self._busy() else "idle")


def thin(points: Sequence[MemoryPoint], most: int) -> list[MemoryPoint]:
    """At most about ``most`` points: of each stretch the one with most memory."""
    stride = -(-len(points) // most) or 1
    return [max(points[start : start + stride], key=_weight) for start in range(0, len(points), stride)]


def _weight(point: MemoryPoint) -> int:
    return (point.reserved_bytes or 0) or (point.resident_bytes or 0)


def _highest(known: MemoryReading, now: MemoryReading) -> dict[str, int | None]:
    pairs = ((name, getattr(known, name), getattr(now, name)) for name in _FIGURES)
    return {
        name: max((each for each in (one, other) if each is not None), default=None) for name, one, other in pairs
    }
