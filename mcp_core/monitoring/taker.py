"""Taker: takes one Sample after another; what grows (tokens, energy, CPU time) is counted from the one before.

This file does not know when a sample is due (``sampler.py``), how a worker is asked for its counters (its probe is
handed in), or what is done with a sample.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import pynvml

from mcp_core.evaluation.cores import busy_s, usable_cores
from mcp_core.generation import EngineStats
from mcp_core.monitoring.nvml import NvmlDevice, read_devices
from mcp_core.monitoring.process_trees import ProcessTree, ProcessTrees, cpu_s_between, together
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


@dataclass(frozen=True, slots=True)
class _Look:
    """The trees of our processes at one moment (time.monotonic()), and what all programs had used of the CPU.

    ``whole`` is false where one of our processes is not known.
    """

    at_s: float = 0.0
    trees: dict[int, ProcessTree] = field(default_factory=dict)
    busy_s: float | None = None
    whole: bool = False


class Taker:
    """For one thread. ``open`` it, take samples, ``close`` it. ``nvml`` is pynvml or a stand-in.

    ``cores`` are those on which others' load counts: what this process may use now, unless given.
    """

    def __init__(self, nvml: Any = pynvml, cores: frozenset[int] | None = None) -> None:
        self._nvml = nvml
        self._cores = usable_cores() if cores is None else cores
        self._has_nvml = False
        self._trees = ProcessTrees()
        self._before = self._now = _Look()
        self._outputs: dict[str, _Output] = {}
        self._stats: dict[str, EngineStats] = {}
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
        self._forget_all_but({probe.worker_id for probe in probes})
        self._look(pids)  # after the devices: whoever held memory then is in a tree, ended or not
        return Sample(
            at_s=time.time(),
            host_cpu_percent=psutil.cpu_percent(),
            host_memory_used_bytes=memory.total - memory.available,
            host_memory_total_bytes=memory.total,
            load_average=psutil.getloadavg()[0],
            devices=devices,
            workers=tuple(self._worker(probe, devices) for probe in probes),
            processes=tuple(self._process(each) for each in processes),
            others_cores=self._others_cores(),
            energy_j={device.index: used for device in devices if (used := self._used_j(device)) is not None},
        )

    def _look(self, pids: Collection[int | None]) -> None:
        known = [pid for pid in pids if pid is not None]
        trees = self._trees.look(known)
        self._before = self._now
        self._now = _Look(time.monotonic(), trees, busy_s(self._cores), len(known) == len(pids))

    def _forget_all_but(self, worker_ids: set[str]) -> None:
        self._outputs = {key: value for key, value in self._outputs.items() if key in worker_ids}
        self._stats = {key: value for key, value in self._stats.items() if key in worker_ids}

    def _worker(self, probe: WorkerProbe, devices: tuple[NvmlDevice, ...]) -> WorkerSample:
        tree = self._tree(probe.pid)
        return WorkerSample(
            worker_id=probe.worker_id,
            title=probe.title,
            resident_bytes=tree.resident_bytes,
            cpu_percent=self._cpu_percent(probe.pid),
            device_bytes={
                device.index: used for device in devices if (used := _held_bytes(device, tree.pids)) is not None
            },
            stats=probe.stats,
            output_tok_s=self._output_rate(probe),
            latency=probe.latency,
            added=self._added(probe),
            pid=probe.pid,
            pids=tree.pids,
        )

    def _process(self, probe: ProcessProbe) -> OwnProcess:
        tree = self._tree(probe.pid)
        return OwnProcess(probe.pid, probe.title, tree.resident_bytes, self._cpu_percent(probe.pid), tree.pids)

    def _tree(self, pid: int | None) -> ProcessTree:
        return self._now.trees[pid] if pid is not None else ProcessTree()

    def _cpu_percent(self, pid: int | None) -> float | None:
        """Of one core, since the sample before; None the first time, and once the process is gone."""
        before, now = (None if pid is None else look.trees.get(pid) for look in (self._before, self._now))
        elapsed_s = self._now.at_s - self._before.at_s
        if before is None or now is None or now.resident_bytes is None or elapsed_s <= 0:
            return None
        return 100 * max(0.0, cpu_s_between(before.times, now.times)) / elapsed_s

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

    def _others_cores(self) -> float | None:
        """Average since the sample before; None when one of ours was not there then, has ended or is not known."""
        before, now = self._before, self._now
        then, ours = together(before.trees), together(now.trees)
        if (
            not (before.whole and now.whole)
            or before.trees.keys() != now.trees.keys()
            or then is None
            or ours is None
        ):
            return None
        if before.busy_s is None or now.busy_s is None or now.at_s <= before.at_s:
            return None
        used_s = now.busy_s - before.busy_s - cpu_s_between(then, ours)
        return max(0.0, used_s / (now.at_s - before.at_s))

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


def _held_bytes(device: NvmlDevice, pids: frozenset[int]) -> int | None:
    """Memory of a device, or of its MIG instances, that these processes hold; None where none is known."""
    held = [device.process_memory_bytes, *(each.process_memory_bytes for each in device.instances)]
    found = {pid: bytes_of[pid] for bytes_of in reversed(held) for pid in pids & bytes_of.keys()}
    return sum(found.values()) if found else None
