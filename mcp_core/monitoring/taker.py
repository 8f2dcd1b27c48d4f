"""Taker: takes one Sample after another; what grows (tokens, energy, CPU time) is counted from the one before.

This file does not know when a sample is due (``sampler.py``), how a worker is asked for its counters (its probe is
handed in), or what is done with a sample.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from mcp_core.evaluation.cores import OthersLoad, usable_cores
from mcp_core.generation import EngineStats
from mcp_core.monitoring.nvml import NvmlDevice, read_devices
from mcp_core.monitoring.sample import OwnProcess, ProcessProbe, Sample, WorkerProbe, WorkerSample

__all__ = ["COUNTERS", "Taker"]

# Counters older than this say nothing about now.
_STALE_S = 3.0

# Counters of EngineStats that a sample says the growth of, by the name of their series.
COUNTERS = {
    "output_tokens": "output_tokens_total",
    "prompt_tokens": "prompt_tokens_total",
    "cached_prompt_tokens": "cached_prompt_tokens_total",
    "kv_evictions": "kv_evictions_total",
    "preemptions": "preemptions_total",
    "kv_host_returned": "kv_host_returned_total",
    "drafted_tokens": "drafted_tokens_total",
    "accepted_tokens": "accepted_tokens_total",
    "finished": "finished_total",
    "cancelled": "cancelled_total",
    "failed": "failed_total",
}


@dataclass(slots=True)
class _Output:
    """A worker's token count when it was last read (time.monotonic()), and the speed that came of it."""

    read_at_s: float
    tokens_total: int
    tok_s: float | None = None


class Taker:
    """For one thread. ``open`` it, take samples, ``close`` it. ``nvml`` is pynvml or a stand-in.

    ``cores`` are those on which others' load counts: what this process may use now, unless given.
    """

    def __init__(self, nvml: Any = pynvml, cores: frozenset[int] | None = None) -> None:
        self._nvml = nvml
        self._cores = usable_cores() if cores is None else cores
        self._has_nvml = False
        self._processes: dict[int, psutil.Process] = {}
        self._outputs: dict[str, _Output] = {}
        self._stats: dict[str, EngineStats] = {}
        self._others: OthersLoad | None = None
        self._energy: dict[str, tuple[float, NvmlDevice]] = {}  # by uuid: when it was read, time.monotonic()

    def open(self) -> None:
        """Hold NVML open: its own count of users makes every later nvmlInit cheap."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._has_nvml = True
        psutil.cpu_percent()  # only sets the point that the first sample counts from

    def close(self) -> None:
        """Give NVML back."""
        if self._has_nvml:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def take(self, probes: Sequence[WorkerProbe], processes: Sequence[ProcessProbe] = ()) -> Sample:
        """The machine now. A counter that cannot be read is None; nothing is raised for it."""
        memory = psutil.virtual_memory()
        devices = read_devices(self._nvml)[1] if self._has_nvml else ()
        pids = [*(each.pid for each in probes), *(each.pid for each in processes)]
        self._forget_all_but({probe.worker_id for probe in probes}, pids)
        return Sample(
            at_s=time.time(),
            host_cpu_percent=psutil.cpu_percent(),
            host_memory_used_bytes=memory.total - memory.available,
            host_memory_total_bytes=memory.total,
            load_average=psutil.getloadavg()[0],
            devices=devices,
            workers=tuple(self._worker(probe, devices) for probe in probes),
            processes=tuple(OwnProcess(each.pid, each.title, *self._use(each.pid)) for each in processes),
            others_cores=self._others_cores(pids),
            energy_j={device.index: used for device in devices if (used := self._used_j(device)) is not None},
        )

    def _forget_all_but(self, worker_ids: set[str], pids: Collection[int | None]) -> None:
        self._processes = {pid: process for pid, process in self._processes.items() if pid in pids}
        self._outputs = {key: value for key, value in self._outputs.items() if key in worker_ids}
        self._stats = {key: value for key, value in self._stats.items() if key in worker_ids}

    def _worker(self, probe: WorkerProbe, devices: tuple[NvmlDevice, ...]) -> WorkerSample:
        resident_bytes, cpu_percent = self._use(probe.pid)
        return WorkerSample(
            worker_id=probe.worker_id,
            title=probe.title,
            resident_bytes=resident_bytes,
            cpu_percent=cpu_percent,
            device_bytes={
                device.index: used
                for device in devices
                if probe.pid is not None and (used := _held_bytes(device, probe.pid)) is not None
            },
            stats=probe.stats,
            output_tok_s=self._output_rate(probe),
            latency=probe.latency,
            added=self._added(probe),
            pid=probe.pid,
        )

    def _use(self, pid: int | None) -> tuple[int | None, float | None]:
        """Resident bytes and CPU percent (None the first time); (None, None) once the process is gone."""
        if pid is None:
            return None, None
        try:
            process = self._processes.get(pid)
            if process is None:
                process = self._processes[pid] = psutil.Process(pid)
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

    def _added(self, probe: WorkerProbe) -> dict[str, int] | None:
        """What the counters grew by; None at the first look, and when they began anew."""
        last, now = self._stats.get(probe.worker_id), probe.stats
        if now is not None:
            self._stats[probe.worker_id] = now
        if last is None or now is None:
            return None
        added = {name: getattr(now, field) - getattr(last, field) for name, field in COUNTERS.items()}
        return added if min(added.values()) >= 0 else None

    def _others_cores(self, pids: Sequence[int | None]) -> float | None:
        """Average since the sample before; None at the first, and when one of ours has ended or is not known."""
        used = self._others.read() if self._others else None
        known = [pid for pid in pids if pid is not None]
        self._others = OthersLoad(known, self._cores) if len(known) == len(pids) else None
        return used

    def _used_j(self, device: NvmlDevice) -> float | None:
        """Energy since the sample before: by the device's counter, else by the mean of both powers."""
        now_s = time.monotonic()
        then_s, before = self._energy.get(device.uuid, (0.0, None))
        self._energy[device.uuid] = now_s, device
        if before is None:
            return None
        if device.energy_mj is not None and before.energy_mj is not None:
            return max(0, device.energy_mj - before.energy_mj) / 1e3
        if device.power_w is not None and before.power_w is not None:
            return (device.power_w + before.power_w) / 2 * (now_s - then_s)
        return None


def _held_bytes(device: NvmlDevice, pid: int) -> int | None:
    """Memory of a device, or of its MIG instances, that a process holds; None where none is known."""
    held = [device.process_memory_bytes, *(each.process_memory_bytes for each in device.instances)]
    return next((bytes_of[pid] for bytes_of in held if pid in bytes_of), None)
