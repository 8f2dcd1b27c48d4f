"""One sample of the machine and its workers a second, kept for an hour.

This file does not know how a worker is asked for its counters (the probes are handed in) or how a series is drawn.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

import psutil
import pynvml

from mcp_core.generation import EngineStats
from mcp_core.monitoring.nvml import NvmlDevice, read_devices

__all__ = ["Sample", "Sampler", "WorkerProbe", "WorkerSample"]

log = logging.getLogger(__name__)

# Counters older than this say nothing about now.
_STALE_S = 3.0
_FIRST_CPU_SPAN_S = 0.1


@dataclass(frozen=True, slots=True)
class WorkerProbe:
    """Which process to look at, and the newest counters its engine reported (None: not known).

    ``stats_at_s`` is time.monotonic() when those counters were read; None stands for "just now".
    """

    worker_id: str
    pid: int
    title: str
    stats: EngineStats | None
    stats_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """One worker at one moment. ``cpu_percent`` is of one core; ``device_bytes`` by NVML device index.

    ``output_tok_s`` is the growth of ``output_tokens_total`` between the two newest readings of the counters over
    the time between them; None before the second reading and when they stop coming. ``device_bytes`` is empty
    where a container hides processes from NVML.
    """

    worker_id: str
    title: str
    resident_bytes: int | None
    cpu_percent: float | None
    device_bytes: dict[int, int]
    stats: EngineStats | None
    output_tok_s: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The machine at one moment. ``at_s`` is time.time(); ``load_average`` over one minute."""

    at_s: float
    host_cpu_percent: float | None
    host_memory_used_bytes: int
    host_memory_total_bytes: int
    load_average: float | None
    devices: tuple[NvmlDevice, ...]
    workers: tuple[WorkerSample, ...]


@dataclass(slots=True)
class _Output:
    """A worker's token count when it was last read (time.monotonic()), and the speed that came of it."""

    read_at_s: float
    tokens_total: int
    tok_s: float | None = None


class Sampler:
    """A daemon thread that takes one Sample every ``interval_s`` and keeps those of the last ``keep_s``.

    ``probes`` is called once a sample from that thread and must return at once. ``nvml`` is pynvml or a stand-in.
    """

    def __init__(
        self,
        probes: Callable[[], tuple[WorkerProbe, ...]],
        interval_s: float = 1.0,
        keep_s: float = 3600.0,
        *,
        nvml: Any = pynvml,
    ) -> None:
        self._probes = probes
        self._interval_s = interval_s
        self._nvml = nvml
        self._has_nvml = False
        self._samples: deque[Sample] = deque(maxlen=max(1, round(keep_s / interval_s)))
        self._lock = threading.Lock()  # a deque that grows while it is copied raises
        self._processes: dict[str, psutil.Process] = {}
        self._outputs: dict[str, _Output] = {}
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
        """The samples of the last ``seconds``, oldest first."""
        since = time.time() - seconds
        with self._lock:
            samples = tuple(self._samples)
        return tuple(dropwhile(lambda sample: sample.at_s < since, samples))

    def _run(self) -> None:
        self._open_nvml()
        psutil.cpu_percent()  # only sets the point that the first sample counts from, a moment ago
        self._stopping.wait(min(self._interval_s, _FIRST_CPU_SPAN_S))
        due_s = time.monotonic()
        try:
            while not self._stopping.is_set():
                self._sample_once()
                due_s = max(due_s + self._interval_s, time.monotonic())
                self._stopping.wait(due_s - time.monotonic())
        finally:
            self._close_nvml()

    def _sample_once(self) -> None:
        try:
            sample = self._take()
            with self._lock:
                self._samples.append(sample)
        except Exception:
            # The thread's border: a gap in the charts is better than no charts from here on.
            log.exception("a sample was skipped")

    def _take(self) -> Sample:
        memory = psutil.virtual_memory()
        devices = read_devices(self._nvml)[1] if self._has_nvml else ()
        return Sample(
            at_s=time.time(),
            host_cpu_percent=psutil.cpu_percent(),
            host_memory_used_bytes=memory.total - memory.available,
            host_memory_total_bytes=memory.total,
            load_average=psutil.getloadavg()[0],
            devices=devices,
            workers=self._take_workers(devices),
        )

    def _take_workers(self, devices: tuple[NvmlDevice, ...]) -> tuple[WorkerSample, ...]:
        probes = self._probes()
        self._forget_all_but({probe.worker_id for probe in probes})
        return tuple(self._take_worker(probe, devices) for probe in probes)

    def _forget_all_but(self, worker_ids: set[str]) -> None:
        self._processes = {key: value for key, value in self._processes.items() if key in worker_ids}
        self._outputs = {key: value for key, value in self._outputs.items() if key in worker_ids}

    def _take_worker(self, probe: WorkerProbe, devices: tuple[NvmlDevice, ...]) -> WorkerSample:
        resident_bytes, cpu_percent = self._process_use(probe)
        return WorkerSample(
            worker_id=probe.worker_id,
            title=probe.title,
            resident_bytes=resident_bytes,
            cpu_percent=cpu_percent,
            device_bytes={
                device.index: device.process_memory_bytes[probe.pid]
                for device in devices
                if probe.pid in device.process_memory_bytes
            },
            stats=probe.stats,
            output_tok_s=self._output_rate(probe),
        )

    def _process_use(self, probe: WorkerProbe) -> tuple[int | None, float | None]:
        """Resident bytes and CPU percent (None the first time); (None, None) once the process is gone."""
        try:
            process = self._processes.get(probe.worker_id)
            if process is None or process.pid != probe.pid:
                process = self._processes[probe.worker_id] = psutil.Process(probe.pid)
                process.cpu_percent()  # sets the point that the next call counts from
                return process.memory_info().rss, None
            return process.memory_info().rss, process.cpu_percent()
        except psutil.Error:
            return None, None

    def _output_rate(self, probe: WorkerProbe) -> float | None:
        if probe.stats is None:
            return None
        now_s = time.monotonic()
        read_at_s = now_s if probe.stats_at_s is None else probe.stats_at_s
        last = self._outputs.get(probe.worker_id)
        if last is not None and last.read_at_s >= read_at_s:
            return last.tok_s if now_s - read_at_s <= _STALE_S else None
        output = _Output(read_at_s, probe.stats.output_tokens_total)
        if last is not None and output.tokens_total >= last.tokens_total:
            output.tok_s = (output.tokens_total - last.tokens_total) / (read_at_s - last.read_at_s)
        self._outputs[probe.worker_id] = output
        return output.tok_s

    def _open_nvml(self) -> None:
        """Hold NVML open: its own count of users makes every later nvmlInit cheap."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._has_nvml = True

    def _close_nvml(self) -> None:
        if self._has_nvml:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
